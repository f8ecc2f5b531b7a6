// What calibration learns while text is computed: how often and how strongly each expert is used, what its matrices
// meet, what it gives; and noise in one layer's experts, to learn how much an error there matters.
//
// Threads write without a lock: each (expert, chunk) has columns and rows of its own; scalars take the lock.
#pragma once

#include "pipeline/streamer.h"

#include <ggml.h>

#include <edgemoe.h>

#include <mutex>
#include <vector>

namespace emoe {

class Collector {
public:
    Collector(const Layout &layout, uint32_t n_sample, uint32_t sample_stride);

    // Of all that will be allocated, before it is.
    static uint64_t bytes(const Layout &layout, uint32_t n_sample);

    // The router's weights of the layer in the graph under way: [1, n_rank, n_token] F32, null when the graph does not
    // multiply the experts' outputs by any. They must be computed before the layer's products, and are (docs/seam.md).
    void set_router(uint32_t layer, const ggml_tensor *weights) { layers_[layer].router = weights; }

    // One thread, before the products of a matrix by which the layer begins.
    void begin_layer(uint32_t layer, const ggml_tensor *activations, const Routing &routing);
    // Chunk `chunk` of `n_chunk` of what an expert's matrix meets.
    void input(uint32_t layer, uint32_t matrix, const ggml_tensor *activations, uint32_t expert, const Row *rows,
               uint32_t n_row, uint32_t chunk, uint32_t n_chunk);
    // Rows begin..end of what an expert's down matrix gives, for its tokens; nothing of other matrices. Adds the noise.
    void output(uint32_t layer, uint32_t matrix, const ggml_tensor *out, uint32_t expert, const Row *rows,
                uint32_t n_row, uint32_t begin, uint32_t end);

    // layer >= n: none. spared: of n experts, those that get none; n 0: all get some. Throws EMOE_ERR_ARGUMENT.
    void set_noise(uint32_t layer, float share, const uint8_t *spared, uint64_t n);
    bool is_down(uint32_t layer, uint32_t matrix) const { return down_[layer] == matrix; }
    // Copies one of EMOE_COLLECT_*. Throws EMOE_ERR_ARGUMENT when n is not what it has.
    void read(uint32_t layer, uint32_t kind, float *out, uint64_t n) const;

private:
    struct Scalars { // of an expert; the order of EMOE_COLLECT_EXPERTS
        double n_token = 0, weight = 0, weight2 = 0, output2 = 0, largest = 0;
    };
    struct Layer {
        const ggml_tensor *router = nullptr;
        uint32_t n_in = 0, n_hidden = 0, n_out = 0;
        std::vector<Scalars> experts;
        std::vector<float> moments[2];         // [in, hidden][expert][column]
        std::vector<float> mean;               // [expert][row], a sum until it is read
        std::vector<float> sample_x, sample_w; // [n_sample][n_in], [n_sample][n_expert]
        std::vector<float> scale; // by token of the batch under way: 1 / root mean square of the residual stream
        bool residual = false;    // it is known
        uint32_t n_sample = 0;
        uint64_t n_seen = 0; // tokens
        double noise2 = 0;   // sum over tokens and experts of (w * noise)^2
    };
    static float router_weight(const Layer &layer, Row row);
    // How much an error of this expert's output counts for this token: the router's weight over the size of what it is
    // added to, since the next norm divides by that.
    static float importance(const Layer &layer, Row row) { return router_weight(layer, row) * layer.scale[row.token]; }

    uint32_t const n_sample_;
    uint32_t const sample_stride_;
    std::vector<Layer> layers_;
    std::vector<uint32_t> n_expert_;
    std::vector<uint32_t> down_; // matrix number
    uint32_t noise_layer_ = UINT32_MAX;
    float noise_share_ = 0;
    std::vector<bool> spared_; // experts of the layer that get none
    mutable std::mutex mutex_; // guards scalars and noise2
};

} // namespace emoe
