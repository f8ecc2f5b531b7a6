#include "llama/picture.h"

#include "base/error.h"
#include "base/machine.h"
#include "io/file.h"
#include "llama/log.h"
#include "llama/mtmd.h"

#include <gguf.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <memory>

namespace emoe {

uint64_t Picture::bytes() const {
    uint64_t n = 0;
    for (Part const &part : parts) n += part.rows.size() * sizeof(float);
    return n;
}

std::vector<llama_pos> positions_of(const Picture::Part &part, uint32_t first, uint32_t n, llama_pos begin) {
    std::vector<llama_pos> found;
    if (part.at.empty()) {
        for (uint32_t i = 0; i < n; i++) found.push_back(begin + static_cast<llama_pos>(first + i));
        return found;
    }
    for (size_t section = 0; section < part.at[0].size(); section++)
        for (uint32_t i = first; i < first + n; i++)
            found.push_back(part.at[i][section] + part.moves[i][section] * begin);
    return found;
}

#ifndef EMOE_MTMD

namespace {
[[noreturn]] void none() {
    fail(EMOE_ERR_UNSUPPORTED, "this build of edgemoe was made without libmtmd: it reads no pictures");
}
} // namespace

EncoderSizes measure_encoder(const std::string &) { none(); }
Picture encode_picture(const std::string &, const llama_model *, const uint8_t *, uint64_t, uint32_t, uint32_t,
                       const std::function<void(uint64_t)> &) {
    none();
}

#else

namespace {

constexpr uint64_t k_mib = 1 << 20;
// stb_image's own for a pixel while it reads a picture: 16-bit PNG has most, a progressive JPEG a little less.
constexpr uint64_t k_read_bytes = 16;
// And then: the pixels, the picture in the encoder's size as bytes and as floats.
constexpr uint64_t k_prepared_bytes = 3 + 3 + 12;
constexpr uint64_t k_common_pixels = 2 << 20; // as a plan takes a picture to be
constexpr uint32_t k_least_limit = 128;       // rows: encoders have a least size of their own
constexpr uint64_t k_spare_bytes = 4 * k_mib; // the encoder's graph, its tensors' names

struct Free {
    void operator()(gguf_context *p) const { gguf_free(p); }
    void operator()(mtmd_context *p) const { mtmd().free(p); }
    void operator()(mtmd_bitmap *p) const { mtmd().bitmap_free(p); }
    void operator()(mtmd_input_chunks *p) const { mtmd().chunks_free(p); }
    void operator()(Mtmd::Pixels *p) const { mtmd().picture_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

mtmd_context_params params_of(uint32_t n_threads) {
    mtmd_context_params p = mtmd().params();
    p.use_gpu = false;
    p.print_timings = false;
    p.n_threads = static_cast<int>(n_threads);
    p.warmup = false; // buffers are made for the picture, when it is there
    return p;
}

// The weights' bytes, after a look at what the file says of itself.
uint64_t weight_bytes(const std::string &path) {
    uint64_t const file_bytes = File(path, FileAccess::buffered).size();
    AssertionGuard const guard;
    LogCapture const log;
    gguf_init_params init = {};
    init.no_alloc = true;
    Owned<gguf_context> const file(gguf_init_from_file(path.c_str(), init));
    if (!file)
        fail(EMOE_ERR_FORMAT, "`%s` is no GGUF file: %s", path.c_str(), log.last_error("no reason given").c_str());
    int64_t const key = gguf_find_key(file.get(), "general.architecture");
    std::string const kind =
        key >= 0 && gguf_get_kv_type(file.get(), key) == GGUF_TYPE_STRING ? gguf_get_val_str(file.get(), key) : "none";
    if (kind != "clip")
        fail(EMOE_ERR_UNSUPPORTED, "`%s` is no picture encoder: its architecture is `%s`, not `clip`", path.c_str(),
             kind.c_str());
    int64_t const vision = gguf_find_key(file.get(), "clip.has_vision_encoder");
    if (vision < 0 || gguf_get_kv_type(file.get(), vision) != GGUF_TYPE_BOOL || !gguf_get_val_bool(file.get(), vision))
        fail(EMOE_ERR_UNSUPPORTED, "`%s` encodes no pictures", path.c_str());
    uint64_t sum = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(file.get()); i++) {
        uint64_t const n = gguf_get_tensor_size(file.get(), i);
        if (gguf_get_data_offset(file.get()) + gguf_get_tensor_offset(file.get(), i) + n > file_bytes)
            fail(EMOE_ERR_FORMAT, "`%s` is cut off: `%s` lies past its end", path.c_str(),
                 gguf_get_tensor_name(file.get(), i));
        sum += n;
    }
    return sum;
}

struct Pixels {
    Owned<mtmd_bitmap> bitmap;
    uint64_t n = 0;
};

Pixels read_pixels(const uint8_t *bytes, uint64_t n_bytes, const std::function<void(uint64_t)> &room) {
    int width = 0, height = 0, channels = 0;
    int const n = n_bytes > INT_MAX ? 0 : static_cast<int>(n_bytes);
    if (n == 0 || !mtmd().picture_info(bytes, n, &width, &height, &channels) || width <= 0 || height <= 0)
        fail(EMOE_ERR_ARGUMENT, "these %llu bytes are no picture that can be read (JPEG, PNG, GIF, BMP)",
             static_cast<unsigned long long>(n_bytes));
    uint64_t const n_pixel = static_cast<uint64_t>(width) * static_cast<uint64_t>(height);
    room(k_read_bytes * n_pixel + k_mib);
    Owned<Mtmd::Pixels> const pixels(mtmd().picture_load(bytes, n, &width, &height, &channels, 3));
    if (!pixels) fail(EMOE_ERR_ARGUMENT, "this picture of %d x %d pixels is damaged", width, height);
    Pixels found;
    found.n = n_pixel;
    found.bitmap.reset(mtmd().bitmap_init(static_cast<uint32_t>(width), static_cast<uint32_t>(height), pixels.get()));
    return found;
}

Picture::Part text_part(const mtmd_input_chunk *chunk) {
    Picture::Part part;
    size_t n = 0;
    llama_token const *tokens = mtmd().chunk_text(chunk, &n);
    part.tokens.assign(tokens, tokens + n);
    return part;
}

Picture::Part row_part(const mtmd_context *ctx, const mtmd_input_chunk *chunk) {
    Picture::Part part;
    part.n_row = static_cast<uint32_t>(mtmd().chunk_n_tokens(chunk));
    part.n_position = static_cast<uint32_t>(mtmd().chunk_n_pos(chunk));
    part.causal = !mtmd().is_non_causal(ctx, chunk);
    if (!mtmd().uses_mrope(ctx)) return part;
    mtmd_image_tokens const *tokens = mtmd().chunk_image(chunk);
    auto const at = [&](uint32_t i, llama_pos begin) {
        mtmd_decoder_pos const p = mtmd().position(tokens, begin, i);
        return std::array<llama_pos, 4>{static_cast<llama_pos>(p.t), static_cast<llama_pos>(p.y),
                                        static_cast<llama_pos>(p.x), static_cast<llama_pos>(p.z)};
    };
    for (uint32_t i = 0; i < part.n_row; i++) {
        std::array<llama_pos, 4> const first = at(i, 0), next = at(i, 1);
        part.at.push_back(first);
        part.moves.push_back({next[0] - first[0], next[1] - first[1], next[2] - first[2], next[3] - first[3]});
    }
    return part;
}

// An encoder's file opened for one picture.
class Encoder {
public:
    Encoder(const std::string &path, const llama_model *model, uint32_t n_threads)
        : path_(path), model_(model), n_threads_(n_threads), n_wide_(llama_model_n_embd_inp(model)) {
        open();
    }

    // Of no more rows a picture than that, where the encoder can choose. 0: as it says itself.
    void limit(uint32_t most_rows) {
        most_rows_ = most_rows;
        open();
    }

    // Whether some rows that must be read at once are more than that.
    bool exceeds(const mtmd_input_chunks *chunks, uint32_t most_rows) const {
        for (size_t i = 0; i < mtmd().chunks_size(chunks); i++) {
            mtmd_input_chunk const *chunk = mtmd().chunks_get(chunks, i);
            if (mtmd().chunk_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT && mtmd().is_non_causal(ctx_.get(), chunk) &&
                mtmd().chunk_n_tokens(chunk) > most_rows)
                return true;
        }
        return false;
    }

    Owned<mtmd_input_chunks> tokenize(const mtmd_bitmap *bitmap) {
        LogCapture const log;
        Owned<mtmd_input_chunks> chunks(mtmd().chunks_init());
        mtmd_input_part part = {};
        part.bitmap = bitmap;
        mtmd_input_part const *const parts = &part;
        if (mtmd().tokenize(ctx_.get(), chunks.get(), &parts, 1, false) != 0)
            fail(EMOE_ERR_UNSUPPORTED, "`%s` does not take this picture: %s", path_.c_str(),
                 log.last_error("no reason given").c_str());
        return chunks;
    }

    // room: told the bytes of the buffers before they are filled.
    Picture::Part encode(const mtmd_input_chunk *chunk, const std::function<void(uint64_t)> &room) {
        Picture::Part part = row_part(ctx_.get(), chunk);
        // Buffers are made for the first part; one that is larger needs others.
        if (n_most_ != 0 && part.n_row > n_most_) open();
        n_most_ = std::max(n_most_, part.n_row);
        Failure failure;
        uint64_t sum = 0;
        LogCapture const log([&](const std::string &line) {
            double mib = 0;
            size_t const at = line.find("compute buffer size = ");
            if (at == std::string::npos || sscanf(line.c_str() + at, "compute buffer size = %lf", &mib) != 1) return;
            sum += static_cast<uint64_t>(mib * k_mib) + k_mib;
            try {
                room(sum + uint64_t{part.n_row} * static_cast<uint64_t>(n_wide_) * 2 * sizeof(float));
            } catch (...) { // llama.cpp is between us and who asked: it is told that this went wrong
                failure = caught();
                failure.raise();
            }
        });
        int const rc = mtmd().encode(ctx_.get(), chunk);
        if (failure) failure.raise();
        if (rc != 0)
            fail(EMOE_ERR_UNSUPPORTED, "`%s` cannot encode this picture: %s", path_.c_str(),
                 log.last_error("no reason given").c_str());
        float const *rows = mtmd().embeddings(ctx_.get());
        part.rows.assign(rows, rows + size_t{part.n_row} * static_cast<size_t>(n_wide_));
        return part;
    }

private:
    void open() {
        ctx_.reset();
        LogCapture const log;
        mtmd_context_params p = params_of(n_threads_);
        if (most_rows_ != 0) p.image_max_tokens = static_cast<int>(most_rows_);
        ctx_.reset(mtmd().init(path_.c_str(), model_, p));
        if (!ctx_)
            fail(EMOE_ERR_UNSUPPORTED, "the picture encoder `%s` is refused: %s", path_.c_str(),
                 log.last_error("no reason given").c_str());
        n_most_ = 0;
    }

    std::string const path_;
    const llama_model *const model_;
    uint32_t const n_threads_;
    int32_t const n_wide_;
    Owned<mtmd_context> ctx_;
    uint32_t n_most_ = 0; // rows that the buffers are for
    uint32_t most_rows_ = 0;
};

} // namespace

EncoderSizes measure_encoder(const std::string &path) {
    EncoderSizes sizes;
    sizes.weight_bytes = weight_bytes(path);
    AssertionGuard const guard;
    LogCapture const log;
    mtmd_context_params p = params_of(1);
    p.warmup = true; // buffers for a picture of common size; here nothing is allocated
    uint64_t sum = 0;
    for (auto const &[device, n] : mtmd().memory_usage(path.c_str(), p)) sum += n;
    if (sum < sizes.weight_bytes)
        fail(EMOE_ERR_UNSUPPORTED, "the picture encoder `%s` is refused: %s", path.c_str(),
             log.last_error("no reason given").c_str());
    uint64_t const computing = sum - sizes.weight_bytes + 12 * k_common_pixels;
    sizes.buffer_bytes = std::max(computing, k_prepared_bytes * k_common_pixels) + k_spare_bytes;
    return sizes;
}

Picture encode_picture(const std::string &encoder, const llama_model *model, const uint8_t *bytes, uint64_t n_bytes,
                       uint32_t n_threads, uint32_t most_rows, const std::function<void(uint64_t)> &room) {
    uint64_t const weights = weight_bytes(encoder) + k_spare_bytes;
    AssertionGuard const guard;
    Pixels pixels = read_pixels(bytes, n_bytes, room);
    uint64_t const prepared = k_prepared_bytes * pixels.n + k_mib;
    room(weights + prepared);
    Picture picture;
    {
        Encoder opened(encoder, model, n_threads);
        Owned<mtmd_input_chunks> chunks = opened.tokenize(pixels.bitmap.get());
        if (most_rows >= k_least_limit && opened.exceeds(chunks.get(), most_rows)) {
            opened.limit(most_rows);
            chunks = opened.tokenize(pixels.bitmap.get());
        }
        pixels.bitmap.reset();
        for (size_t i = 0; i < mtmd().chunks_size(chunks.get()); i++) {
            mtmd_input_chunk const *chunk = mtmd().chunks_get(chunks.get(), i);
            if (mtmd().chunk_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT)
                picture.parts.push_back(text_part(chunk));
            else
                picture.parts.push_back(
                    opened.encode(chunk, [&](uint64_t n) { room(weights + 12 * pixels.n + picture.bytes() + n); }));
        }
    }
    trim_heap();
    return picture;
}

#endif

} // namespace emoe
