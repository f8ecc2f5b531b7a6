// What a context will allocate, asked of llama.cpp without allocating it (no_alloc), and of ourselves.
#pragma once

#include "llama/index.h"

#include <edgemoe.h>

#include <llama.h>

namespace emoe {

// Whether this process has measured or opened a model: what that takes once (code, tables, threads) it has then.
bool has_loaded();
void note_loaded();

// The parameters common to measuring and opening.
llama_model_params model_params();
constexpr uint32_t k_max_rope_scaling = LLAMA_ROPE_SCALING_TYPE_MAX_VALUE;
llama_context_params context_params(const emoe_setup &setup);
uint32_t n_sequence(const emoe_setup &setup); // 1 or more
uint32_t n_rows(const emoe_setup &setup);     // of logits that one graph gives, at most
// The ggml_type of the KV cache that emoe_setup asks for, 0 for the default. Throws EMOE_ERR_ARGUMENT.
uint32_t kv_type_of(uint32_t asked);

// Sizes of the buffers that llama.cpp reported in its log while a context was made.
struct ContextBuffers {
    uint64_t kv_bytes = 0;
    uint64_t compute_bytes = 0;
    uint64_t output_bytes = 0;
    uint64_t gpu_bytes = 0;       // of a GPU's KV cache and compute buffers
    uint64_t gpu_model_bytes = 0; // and of its weights, where they were allocated
};
// gpu: name of the GPU that has the KV cache, as in the log; nullptr: none has.
ContextBuffers parse_buffers(const std::string &log, const char *gpu = nullptr);

// Of logits: llama.cpp begins with one row, and takes the others when they are first asked for.
uint64_t output_bytes(const ContextBuffers &buffers, const ModelIndex &index, const emoe_setup &setup);

// Working memory by the size of a batch: llama.cpp's compute buffers and our scratch. Decode holds a part all the time.
class WorkSpace {
public:
    WorkSpace() = default;
    // compute_bytes: of a batch of setup.n_ubatch tokens, as llama.cpp says.
    WorkSpace(const ModelIndex &index, const emoe_setup &setup, uint64_t compute_bytes);
    uint64_t decode_bytes() const;
    // What a call of n tokens takes beyond decode_bytes.
    uint64_t extra_bytes(uint32_t n_token) const;
    // Of decode_bytes, what is there before anything is computed: the routers that prediction keeps.
    uint64_t loaded_bytes() const { return predictor_bytes_; }
    uint64_t scratch_bytes() const; // of the largest batch, ggml's work buffer included
    uint32_t n_ubatch() const { return n_ubatch_; }

private:
    uint64_t bytes(uint32_t n_token) const;

    uint32_t n_ubatch_ = 1;
    uint64_t predictor_bytes_ = 0; // inside backend_bytes_
    uint64_t compute_bytes_ = 0;
    uint64_t logits_row_bytes_ = 0; // inside compute_bytes: a row for each token whose logits are kept
    uint32_t n_outputs_ = 1;
    uint64_t backend_bytes_ = 0;          // ggml's own work buffer, which stays at the size of the largest batch
    std::vector<uint64_t> scratch_bytes_; // by batch of 2^i tokens
};
// Calls of at most this many tokens need no more than decode_bytes.
constexpr uint32_t k_decode_tokens = 8;

// What a context of setup's shape (n_ctx, n_ubatch, n_threads, ...) will allocate.
emoe_context_sizes measure_context(const ModelIndex &index, const std::string &shell_path, const emoe_setup &setup);

} // namespace emoe
