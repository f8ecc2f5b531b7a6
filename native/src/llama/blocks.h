// Blocks of ggml's types taken apart: what a code stands for, and codes put back. The layouts are GGUF's.
#pragma once

#include <cstdint>
#include <vector>

namespace emoe {

constexpr uint32_t k_most_weights = 256; // of a block
constexpr uint32_t k_most_scales = 16;

// What the codes of a block are read with: a weight is scale * value + offset.
struct Scales {
    float scale[k_most_scales];
    float offset[k_most_scales];
};

// A type whose codes can be chosen one after the other, the scales being there. A code stands for `group` weights:
// 1, or the absolute values of 4 or 8 whose signs lie beside.
struct BlockForm {
    uint32_t n_weight;          // of a block
    uint32_t step;              // weights that share a scale
    uint32_t group;             // weights that share a code
    bool even;                  // of each 8 weights an even number is negative: the eighth sign is not stored
    std::vector<float> values;  // [codes][group]; ascending where group is 1
    std::vector<uint8_t> codes; // what is stored for each value, where it is not its place
    Scales (*scales)(const uint8_t *raw);
    // codes: one a group. signs: a byte each 8 weights, bit i set: weight i is negative.
    void (*put)(uint8_t *raw, const uint16_t *codes, const uint8_t *signs);
};

// Null for a type that is rounded by whole blocks only. type: ggml's number.
const BlockForm *form_of(int type);

} // namespace emoe
