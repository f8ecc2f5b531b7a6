// Pictures in a sequence: encoded while the cache lends the encoder its memory, then computed as rows of embeddings.
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine.h"

#include <algorithm>
#include <optional>

namespace emoe {

uint64_t Engine::add_picture(const std::string &encoder, const uint8_t *bytes, uint64_t n_bytes) {
    if (stale_) stale_.raise();
    if (n_sequence() > 1)
        fail(EMOE_ERR_UNSUPPORTED, "pictures are read by an engine of one sequence, this one has %u", n_sequence());
    auto const room = [this](uint64_t n) {
        if (!lend(n))
            fail(EMOE_ERR_MEMORY,
                 "encoding this picture takes %llu MiB, which the expert cache has not beside its smallest size",
                 static_cast<unsigned long long>(n >> 20) + 1);
    };
    waiting_.begin();
    try {
        Picture picture =
            encode_picture(encoder, model_.get(), bytes, n_bytes, setup_.n_threads, setup_.n_ubatch, room);
        waiting_.end();
        keep_lent(picture.bytes());
        pictures_.emplace(++last_picture_, std::move(picture));
    } catch (...) {
        waiting_.end();
        take_back();
        throw;
    }
    take_back();
    return last_picture_;
}

void Engine::forget_picture(uint64_t id) {
    auto const found = pictures_.find(id);
    if (found == pictures_.end()) return;
    uint64_t const n = found->second.bytes();
    pictures_.erase(found);
    give_up_lent(n);
    take_back();
}

const Picture &Engine::picture(uint64_t id) const {
    auto const found = pictures_.find(id);
    if (found == pictures_.end())
        fail(EMOE_ERR_ARGUMENT, "picture %llu is not known", static_cast<unsigned long long>(id));
    return found->second;
}

// As stock's mtmd_helper_decode_image_chunk: no logits, and where rows see those behind them all of them at once.
void Engine::decode_picture(uint64_t id, uint32_t number) {
    Picture const &whole = picture(id);
    if (number >= whole.parts.size() || whole.parts[number].n_row == 0)
        fail(EMOE_ERR_ARGUMENT, "part %u of this picture has no rows", number);
    Picture::Part const &part = whole.parts[number];
    if (stale_) stale_.raise();
    Sequence &sequence = selected();
    uint32_t const begin = sequence.n_past, n_ubatch = setup_.n_ubatch;
    if (part.n_row > n_ctx_ - begin)
        fail(EMOE_ERR_CONTEXT, "%u rows of a picture do not fit: the context holds %u and has %u", part.n_row, n_ctx_,
             begin);
    if (!part.causal && part.n_row > n_ubatch)
        fail(EMOE_ERR_UNSUPPORTED, "this model reads the %u rows of a picture at once, a batch here has %u at most",
             part.n_row, n_ubatch);
    llama_pos const at = *position(sequence, begin);
    sequence.n_row = 0;
    size_t const width = part.rows.size() / part.n_row;
    auto const pieces = [&] {
        if (!part.causal) llama_set_causal_attn(ctx_.get(), false);
        for (uint32_t done = 0; done < part.n_row; done += n_ubatch) {
            uint32_t const piece = std::min(n_ubatch, part.n_row - done);
            wanted_.assign(piece, 0);
            llama_batch batch = batch_of(piece, {&sequence});
            pos_ = positions_of(part, done, piece, at);
            batch.pos = pos_.data();
            batch.embd = const_cast<float *>(part.rows.data()) + done * width;
            compute(batch, {&sequence}, Rounding::batch);
        }
        if (!part.causal) llama_set_causal_attn(ctx_.get(), true);
        sequence.spans.push_back({begin, part.n_row, part.n_position});
    };
    prefill_ns_ += attempt(part.n_row, pieces, [&] {
        if (!part.causal) llama_set_causal_attn(ctx_.get(), true);
        forget_after(sequence, begin);
    });
    n_prefill_ += part.n_row;
}

// Where token n of a sequence is: rows of a picture may share positions. Nothing for one inside a picture.
std::optional<llama_pos> Engine::position(const Sequence &sequence, uint32_t n) {
    int64_t at = n;
    for (Span const &span : sequence.spans) {
        if (n <= span.begin) break;
        if (n < span.begin + span.n_row) return std::nullopt;
        at += int64_t{span.n_position} - int64_t{span.n_row};
    }
    return static_cast<llama_pos>(at);
}

} // namespace emoe
