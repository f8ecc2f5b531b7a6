// Experts on a GPU beside those that the CPU computes: the third tier, after memory and flash.
//
// In a layer that has some, the rows routed to them go to the GPU in one piece when the layer's first product begins
// (up, gate, activation and down there, by ggml's own kernels, through a backend of our own), and come back when the
// last product has no other work left: meanwhile the CPU computes the other rows. Which experts are there is fixed
// when the model is loaded, so that every run rounds alike.
//
// What stands between the products is taken from llama.cpp's graph, where it is one GLU node of gate and up; layers that
// compute anything else there are refused.
#pragma once

#include "io/file.h"
#include "llama/index.h"
#include "pipeline/routing.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <memory>
#include <string>
#include <vector>

namespace emoe {

// Memory that a tier takes, in bytes.
struct TierBytes {
    uint64_t gpu = 0;  // weights, rounded as the backend asks, and work space
    uint64_t host = 0; // rows on their way
};

class GpuTier {
public:
    // experts: ExpertIndex, sorted, each once. Reads them from the model's files. Throws EMOE_ERR_IO,
    // EMOE_ERR_UNSUPPORTED, EMOE_ERR_MEMORY.
    GpuTier(const ModelIndex &index, ggml_backend_dev_t device, const std::vector<uint32_t> &experts,
            uint32_t n_ubatch);
    ~GpuTier();
    GpuTier(const GpuTier &) = delete;
    GpuTier &operator=(const GpuTier &) = delete;

    // Throws EMOE_ERR_UNSUPPORTED when one of them cannot be there.
    static TierBytes bytes(const ModelIndex &index, const std::vector<uint32_t> &experts, uint32_t n_ubatch);
    // Time from begin to the end of finish for one token that uses n experts of the layer, all here: median of a few, in
    // nanoseconds. For deciding what goes there.
    static uint64_t measure_ns(const ModelIndex &index, ggml_backend_dev_t device, uint32_t layer, uint32_t n);
    uint64_t gpu_bytes() const; // that were allocated
    bool has(uint32_t layer) const { return !layers_[layer].stacks.empty(); }
    // The node between the products, as the graph shows it: GLU of gate and up. gate_first: in that order.
    void set_activation(uint32_t layer, const ggml_tensor *glu, bool gate_first);
    bool has_activation(uint32_t layer) const { return layers_[layer].known; }

    // A visit: activations is what up and gate multiply, [n_col, 1, n_token] F32 on the host. Does not wait.
    void begin(uint32_t layer, const ggml_tensor *activations, const std::vector<GpuRow> &rows);
    // Into dst, down's result [n_row, n_rank, n_token] F32 on the host. Waits for what begin began.
    void finish(ggml_tensor *dst);

private:
    struct Chain; // a graph of one layer for a number of rows
    struct Layer {
        std::vector<ggml_tensor *> stacks; // by matrix, its rows of all `experts`; empty: none of them is here
        uint32_t up = 0, gate = 0, down = 0;
        std::vector<uint32_t> experts; // of the layer
        std::vector<int32_t> place;    // by expert of the layer: index into `experts`, -1
        bool known = false, gate_first = true;
        int32_t glu_params[GGML_MAX_OP_PARAMS / sizeof(int32_t)] = {};
        std::vector<std::unique_ptr<Chain>> chains; // by rows of a single token
    };
    void build(const ModelIndex &index, ggml_backend_dev_t device, const std::vector<uint32_t> &experts);
    void release();
    void fill(const ModelIndex &index);
    void launch(const GpuRow *rows, uint32_t n);
    void fetch(ggml_tensor *dst, const GpuRow *rows, uint32_t n);
    std::unique_ptr<Chain> chain(Layer &layer, uint32_t n_row, bool single);
    ggml_tensor *place(ggml_tensor *t, size_t *offset) const;

    std::vector<Layer> layers_;
    uint32_t n_ubatch_;
    ggml_backend_t backend_ = nullptr;
    ggml_context *ctx_ = nullptr;
    ggml_backend_buffer_t weights_ = nullptr, work_ = nullptr, staging_ = nullptr;
    uint8_t *inputs_ = nullptr, *outputs_ = nullptr; // in staging_
    int32_t *ids_ = nullptr;
    uint32_t n_piece_ = 0; // rows computed at once, at most
    // Under way.
    uint32_t layer_ = 0;
    uint32_t n_token_ = 0;
    std::vector<GpuRow> rows_;
    std::unique_ptr<Chain> batch_; // its graph must live until it is computed
    uint32_t n_launched_ = 0;      // of rows_, in the piece under way
    uint32_t n_fetched_ = 0;
};

} // namespace emoe
