// Which experts the next layers will use, guessed from this layer's router input.
//
// The residual stream changes little from layer to layer, so the router of layer l + d applied to the router input of
// layer l ("stale gate": Fate 2502.12224, HOBBIT 2411.01433) finds most of what layer l + d will choose. Two things
// mend its bias: the input is taken before the norm's weight of layer l and given that of l + d; and what the score is
// worth is learned while running: for each pair of layers a logistic regression over the score's distance from the
// top-k boundary, over whether the last token used the expert, and a term for each expert. Each visit gives its labels
// for free. The result is a probability, so it can be weighed against what a wrong read costs.
//
// Knows no ggml: routers come as floats and are kept as 8-bit rows, which changes no choice worth naming.
#pragma once

#include "cache/policy.h"

#include <cstdint>
#include <vector>

namespace emoe {

constexpr uint32_t k_max_depth = 4;

// How good the guesses for one layer have been.
struct Accuracy {
    uint64_t n_used[k_max_depth] = {};  // experts that the layer used, when it had been guessed d + 1 layers ahead
    uint64_t n_found[k_max_depth] = {}; // of them among the k likeliest
};

class Predictor {
public:
    Predictor(const PolicyShape &shape, uint32_t n_embd);

    // Bytes that the routers and weights of a model will take.
    static uint64_t bytes(const PolicyShape &shape, uint32_t n_embd);

    // rows: [n_expert of the layer][n_embd]; norm: [n_embd], the weight by which its input was multiplied, or nullptr.
    void set_router(uint32_t layer, const float *rows, const float *norm);
    bool has_router(uint32_t layer) const { return !layers_[layer].rows.empty(); }

    // The router input of a layer for one token, [n_embd]: replaces the guesses for the next layers.
    void set_input(uint32_t layer, const float *input);
    // Probability of use of each expert of layer + d, d = 1 .. k_max_depth, after set_input(layer). nullptr: unknown.
    const float *guess(uint32_t layer, uint32_t d);

    // What a layer really used: updates the regression of every guess made for it.
    void learn(uint32_t layer, const Use *uses, size_t n_use);
    Accuracy const &accuracy(uint32_t layer) const { return layers_[layer].accuracy; }

private:
    struct Guess {
        bool made = false;
        std::vector<float> z; // distance from the boundary of the top k, in standard deviations
        std::vector<float> p;
        float slope = 2.5f, again = 0.5f, base = -0.3f; // the regression; begins as it ends on models seen
        std::vector<float> own;                         // of each expert
    };
    struct Layer {
        uint32_t first = 0, n_expert = 0;
        std::vector<int8_t> rows;        // [n_expert][n_embd]
        std::vector<float> scale;        // of each row
        std::vector<float> norm_inverse; // [n_embd], empty for no norm
        std::vector<uint8_t> used;       // by the last token
        Guess guesses[k_max_depth];      // of this layer, from d + 1 layers before
        Accuracy accuracy;
    };
    PolicyShape const shape_;
    uint32_t const n_embd_;
    std::vector<Layer> layers_;
    std::vector<int8_t> input_; // quantized; the scale falls out, since z is relative
    std::vector<float> scratch_;
};

} // namespace emoe
