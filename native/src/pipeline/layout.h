// Where the bytes of every routed expert are, in the files and in a slot. Plain data, made from the GGUF headers.
#pragma once

#include "cache/policy.h"

#include <cstdint>
#include <string>
#include <vector>

namespace emoe {

constexpr uint32_t k_max_matrix = 3; // up, gate, down; or gate_up, down; or up, down

// One matrix of one expert: n_row rows of row_bytes each, contiguous in a file.
struct Slice {
    uint64_t offset = 0; // in the file
    uint32_t bytes = 0;
    uint16_t file = 0;
    uint16_t type = 0; // ggml_type; may differ from expert to expert
};

struct Matrix {
    std::string name;         // GGUF tensor: "blk.3.ffn_up_exps.weight"
    std::string role;         // "up", "gate", "down", "gate_up"
    uint32_t n_col = 0;       // ne[0]: length of a row
    uint32_t n_row = 0;       // ne[1]
    uint64_t slot_offset = 0; // of its region in a slot
    uint64_t region_bytes = 0;
};

// The experts of one mixture layer. matrices are in the order in which llama.cpp multiplies by them.
struct ExpertLayer {
    uint32_t layer = 0;
    uint32_t n_expert = 0;
    ExpertIndex first = 0; // ExpertIndex of its expert 0
    uint64_t slot_bytes = 0;
    std::vector<Matrix> matrices;
    std::vector<Slice> slices; // [expert][matrix]

    Slice const &slice(uint32_t expert, uint32_t matrix) const { return slices[expert * matrices.size() + matrix]; }
};

struct Layout {
    std::vector<std::string> paths; // files, by Slice::file
    std::vector<ExpertLayer> layers;
    uint32_t n_expert_used = 0; // top-k, the largest of any layer
    uint32_t n_expert_total = 0;
};

// Sets slot_offset, region_bytes and slot_bytes for reads aligned to `alignment` bytes. A region holds the largest
// slice of its matrix with the alignment at both ends.
void place_regions(Layout *layout, uint32_t alignment);

// The read that brings a slice into a region: offset, length, and where in the region the slice then begins.
struct Span {
    uint64_t offset;
    uint32_t bytes;
    uint32_t need;
    uint32_t skip;
};
inline Span aligned_span(Slice const &s, uint32_t alignment) {
    uint64_t const begin = s.offset / alignment * alignment;
    uint64_t const end = s.offset + s.bytes;
    return Span{begin, static_cast<uint32_t>((end + alignment - 1) / alignment * alignment - begin),
                static_cast<uint32_t>(end - begin), static_cast<uint32_t>(s.offset - begin)};
}

} // namespace emoe
