// The arithmetic of an expert product, with ggml's own kernels, so that the result is llama.cpp's to the bit.
//
// Two regimes, cut where ggml cuts them (8 rows an expert): few rows go through the row kernel of the type traits
// (vec_dot), many through a one-thread graph of ggml_mul_mat_id on the expert's slot, which reaches ggml's batched
// kernels. Every expert may have its own type.
#pragma once

#include "base/arena.h"
#include "pipeline/product.h"

#include <ggml.h>

#include <memory>
#include <vector>

namespace emoe {

class Collector;
class GpuTier;

// Memory that grows to what is asked of it, keeps nothing, and can be given back between computations.
class Buffer {
public:
    uint8_t *reserve(size_t bytes) {
        if (arena_.size() < bytes) arena_ = Arena(bytes, false);
        return arena_.data();
    }
    uint8_t *data() const { return arena_.data(); }
    void release() const { arena_.release(); }

private:
    Arena arena_;
};

// Bound of the types into which activations are quantized for vec_dot (six in use: Q8_0, Q8_1, Q8_K, F16, BF16, F32).
constexpr uint32_t k_max_dot_type = GGML_TYPE_COUNT;

// Bytes that are reused from product to product. One for the engine: products never overlap.
//
// Nothing here has a lock. What may change a buffer's place or size (reserve of `quantized`, reserve_threads, held) is
// done by the thread that begins a product, before it lets the others go on. They write to parts of `quantized` that are
// theirs alone while they prepare, and only read it while they compute; batched(i) is the i-th thread's. release is for
// when no product is under way.
class KernelScratch {
public:
    KernelScratch();
    ~KernelScratch();

    Buffer quantized[k_max_dot_type]; // activations, by vec_dot type
    // What `quantized` holds: gate multiplies the same activations as up, and finds them done.
    struct Held {
        const ggml_tensor *source = nullptr;
        uint64_t visit = 0;
        uint32_t n_type = 0;
        ggml_type types[k_max_dot_type] = {};
    } held;
    struct Batched; // a thread's graph and buffers
    Batched &batched(uint32_t thread);
    void reserve_threads(uint32_t n);
    void release(); // the pages

private:
    std::vector<std::unique_ptr<Batched>> batched_;
};

// What KernelScratch will come to hold for batches of n_token.
uint64_t scratch_bytes(const Layout &layout, uint32_t n_token, uint32_t n_thread);

// True when this build of ggml can multiply by the type. A layer's experts may have any mixture of such types.
bool can_compute(ggml_type type);

class ExpertProduct final : public ProductWork {
public:
    ExpertProduct(Streamer &streamer, KernelScratch &scratch, uint32_t layer, uint32_t matrix)
        : streamer_(streamer), scratch_(scratch), layer_(layer), matrix_(matrix) {}

    ggml_tensor *dst = nullptr; // set before Product::run by every thread alike: [n_row, n_rank, n_token] F32
    // Of the layer, in this graph; nullptr when it shows none.
    const ggml_tensor *router_input = nullptr;
    bool router_input_lives = false; // somebody reads it after us, though experts are given something else
    const ggml_tensor *router_weights = nullptr;
    // Likewise; nullptr where there is none.
    GpuTier *tier = nullptr;        // computes some of the layer's experts beside us
    Collector *collector = nullptr; // of calibration: is told what experts meet and give

    bool begin(uint32_t n_thread) override;
    void look_ahead() override;
    void prepare(uint32_t item) override;
    void compute(uint32_t expert_index, uint32_t chunk, uint32_t thread) override;
    void last() override;

private:
    void read_routing(bool is_last);                  // is_last: the product that ends a visit
    bool on_gpu(uint32_t rank, uint32_t token) const; // a row that the tier computes
    // Rows begin..end of the expert's matrix with all its tokens.
    void multiply(uint32_t expert_index, uint32_t begin, uint32_t end, uint32_t thread);
    const uint8_t *activation(ggml_type vec_dot_type, Row row) const;
    float *row_of(Row row) const; // of dst

    Streamer &streamer_;
    KernelScratch &scratch_;
    uint32_t const layer_;
    uint32_t const matrix_;
    Routing routing_;                   // of the graph under way
    std::vector<float> inverse_square_; // what it points to
    uint32_t n_type_ = 0;               // distinct vec_dot types of the experts in the visit
    ggml_type vec_dot_types_[k_max_dot_type] = {};
    const uint8_t *quantized_[k_max_dot_type] = {}; // activations in that type
    size_t row_bytes_[k_max_dot_type] = {};         // of a quantized activation row
    uint32_t n_segment_ = 1;                        // pieces into which a row is cut for preparation
    uint32_t n_activation_ = 0;                     // activation rows
};

} // namespace emoe
