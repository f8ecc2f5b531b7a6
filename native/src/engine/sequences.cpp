// Several sequences of tokens side by side: one graph computes a token of each, so that a layer's experts are read once.
#include "base/error.h"
#include "engine/engine.h"
#include "llama/log.h"

#include <algorithm>

namespace emoe {

const float *Engine::Sequence::logits(uint32_t i) const {
    return i < n_row ? kept.data() + size_t{i} * static_cast<size_t>(llama_vocab_n_tokens(words)) : nullptr;
}

const TextModel &Engine::text(uint32_t sequence) const {
    if (n_sequence() == 1) return *this;
    return sequences_[sequence];
}

void Engine::select(uint32_t sequence) {
    if (sequence >= n_sequence())
        fail(EMOE_ERR_ARGUMENT, "sequence %u: the engine was opened for %u", sequence, n_sequence());
    selected_ = sequence;
}

void Engine::keep_logits(Sequence &sequence, uint32_t first_row, uint32_t n_row) {
    auto const n_vocab = static_cast<size_t>(llama_vocab_n_tokens(vocab_));
    sequence.kept.resize(std::max(sequence.kept.size(), n_row * n_vocab));
    for (uint32_t i = 0; i < n_row; i++) {
        int32_t const index = output_index(first_row + i);
        std::copy_n(llama_get_logits_ith(ctx_.get(), index), n_vocab, sequence.kept.data() + i * n_vocab);
    }
    sequence.n_row = n_row;
}

void Engine::forget_after(Sequence &sequence, uint32_t n) {
    llama_memory_t const memory = llama_get_memory(ctx_.get());
    auto const place = static_cast<llama_seq_id>(sequence.place);
    sequence.n_row = 0;
    std::optional<llama_pos> const at = position(sequence, n);
    bool const cut = at && sees_before(sequence, *at) && llama_memory_seq_rm(memory, place, *at, -1);
    if (!cut) llama_memory_clear(memory, true); // it cannot be cut there: the caller computes it again
    sequence.n_past = cut ? n : 0;
    while (!sequence.spans.empty() && sequence.spans.back().begin >= sequence.n_past) sequence.spans.pop_back();
}

void Engine::rewind(uint32_t n) {
    Sequence &sequence = selected();
    if (n >= sequence.n_past) {
        if (n > sequence.n_past)
            fail(EMOE_ERR_ARGUMENT, "cannot rewind to %u tokens: there are %u", n, sequence.n_past);
        return;
    }
    n_output_ = 0;
    forget_after(sequence, n);
    if (sequence.n_past != n)
        fail(EMOE_ERR_UNSUPPORTED, "the state of this model cannot be cut at token %u: it was emptied", n);
}

int32_t Engine::output_index(uint32_t i) const {
    if (i >= n_output_) return -2;
    return all_outputs_ ? static_cast<int32_t>(i) : -1;
}

const float *Engine::logits(uint32_t i) const {
    int32_t const index = output_index(i);
    return index == -2 ? nullptr : llama_get_logits_ith(ctx_.get(), index);
}

void Engine::step(const uint32_t *sequences, const int32_t *tokens, uint32_t n) {
    if (n > n_sequence())
        fail(EMOE_ERR_ARGUMENT, "a token of each of %u sequences: the engine was opened for %u", n, n_sequence());
    check_tokens(tokens, n);
    struct Member {
        Sequence *sequence;
        int32_t token;
    };
    std::vector<Member> members;
    std::vector<Sequence *> all;
    for (uint32_t i = 0; i < n; i++) {
        if (sequences[i] >= n_sequence())
            fail(EMOE_ERR_ARGUMENT, "sequence %u: the engine was opened for %u", sequences[i], n_sequence());
        Sequence &sequence = sequences_[sequences[i]];
        if (std::find(all.begin(), all.end(), &sequence) != all.end())
            fail(EMOE_ERR_ARGUMENT, "sequence %u is named twice", sequences[i]);
        if (sequence.n_past == n_ctx_)
            fail(EMOE_ERR_CONTEXT, "1 token does not fit: the context holds %u and has %u", n_ctx_, n_ctx_);
        members.push_back({&sequence, tokens[i]});
        all.push_back(&sequence);
    }
    make_neighbours(all);
    std::sort(members.begin(), members.end(),
              [](const Member &a, const Member &b) { return a.sequence->place < b.sequence->place; });
    std::vector<uint32_t> before;
    for (Sequence *sequence : all) {
        before.push_back(sequence->n_past);
        sequence->n_row = 0;
    }
    auto const computing = [&] {
        // All at once, unless there was no memory to make them neighbours.
        for (size_t begin = 0, end = 0; begin < members.size(); begin = end) {
            std::vector<Sequence *> together;
            std::vector<int32_t> texts;
            for (; end < members.size(); end++) {
                if (end > begin && members[end].sequence->place != together.back()->place + 1) break;
                together.push_back(members[end].sequence);
                texts.push_back(members[end].token);
            }
            auto const n_row = static_cast<uint32_t>(together.size());
            wanted_.assign(n_row, 1);
            compute(texts.data(), n_row, together, n_row == 1 ? Rounding::batch : Rounding::columns);
            all_outputs_ = true;
            n_output_ = n_row;
            for (uint32_t i = 0; i < n_row; i++) keep_logits(*together[i], i, 1);
        }
    };
    auto const undo = [&] {
        for (size_t i = 0; i < all.size(); i++) forget_after(*all[i], before[i]);
    };
    decode_ns_ += attempt(n, computing, undo);
    n_decode_ += n;
}

// llama.cpp computes sequences in one graph only where their numbers follow one another. Those that are computed
// together change places with others, as few as do.
void Engine::make_neighbours(const std::vector<Sequence *> &members) {
    auto const n = static_cast<uint32_t>(members.size());
    auto const outside = [&](uint32_t first) {
        return std::count_if(members.begin(), members.end(), [&](const Sequence *member) {
            return member->place < first || member->place >= first + n;
        });
    };
    uint32_t best = 0;
    for (uint32_t first = 1; first + n <= n_sequence(); first++)
        if (outside(first) < outside(best)) best = first;
    for (Sequence *member : members) {
        if (member->place >= best && member->place < best + n) continue;
        auto const other = std::find_if(sequences_.begin(), sequences_.end(), [&](const Sequence &one) {
            return one.place >= best && one.place < best + n &&
                   std::find(members.begin(), members.end(), &one) == members.end();
        });
        if (!exchange(*member, *other)) return;
    }
}

// Two sequences change places. False, and nothing has changed, where the cache has no memory to lend for their states.
bool Engine::exchange(Sequence &a, Sequence &b) {
    AssertionGuard const guard;
    struct State {
        std::unique_ptr<uint8_t[]> bytes;
        uint64_t n_bytes = 0;
    };
    auto const place = [](const Sequence &s) { return static_cast<llama_seq_id>(s.place); };
    auto const size = [&](const Sequence &s) {
        return s.n_past == 0 ? 0 : uint64_t{llama_state_seq_get_size(ctx_.get(), place(s))};
    };
    uint64_t const lent = lent_bytes_ - kept_bytes_; // a batch's work space may have been kept
    if (!lend(lent + size(a) + size(b))) return false;
    auto const taken = [&](Sequence &s) {
        State state;
        state.n_bytes = size(s);
        if (state.n_bytes == 0) return state;
        state.bytes.reset(new uint8_t[state.n_bytes]);
        state.n_bytes = llama_state_seq_get_data(ctx_.get(), state.bytes.get(), state.n_bytes, place(s));
        return state;
    };
    auto const given = [&](Sequence &s, const State &state) {
        llama_memory_seq_rm(llama_get_memory(ctx_.get()), place(s), -1, -1);
        if (state.n_bytes == 0 ||
            llama_state_seq_set_data(ctx_.get(), state.bytes.get(), state.n_bytes, place(s)) == state.n_bytes)
            return;
        forget_after(s, 0);
        fail(EMOE_ERR_INTERNAL, "llama.cpp does not take back the state of a sequence");
    };
    try {
        State const first = taken(a), second = taken(b);
        std::swap(a.place, b.place);
        given(a, first);
        given(b, second);
    } catch (...) {
        lend(lent);
        throw;
    }
    lend(lent);
    return true;
}

// Whether one graph can compute a token of every sequence is found before the first answer. Nothing of it is computed.
void Engine::dry_step() {
    std::vector<Sequence *> all;
    for (Sequence &sequence : sequences_) all.push_back(&sequence);
    std::vector<llama_token> const tokens(all.size(), std::max(llama_vocab_bos(vocab_), 0));
    wanted_.assign(all.size(), 1);
    dry_ = true;
    try {
        compute(tokens.data(), n_sequence(), all, Rounding::columns);
    } catch (const Error &error) { // ended on purpose
        dry_ = false;
        if (error.status == EMOE_ERR_UNSUPPORTED) throw;
    }
    dry_ = false;
    llama_memory_clear(llama_get_memory(ctx_.get()), true);
    for (Sequence &sequence : sequences_) sequence.n_past = 0;
    interposer_->begin_graph();
}

} // namespace emoe
