// Where the bytes of every routed expert are, in the files and in a slot. Plain data, made from the GGUF headers.
#pragma once

#include "cache/classes.h"
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
    std::string name;   // GGUF tensor: "blk.3.ffn_up_exps.weight"
    std::string role;   // "up", "gate", "down", "gate_up"
    uint32_t n_col = 0; // ne[0]: length of a row
    uint32_t n_row = 0; // ne[1]
};

// One read: matrices of one expert that lie together in a file, and where in a slot the read begins.
struct Piece {
    uint64_t offset = 0; // in the file, aligned
    uint32_t bytes = 0;  // aligned
    uint32_t need = 0;   // bytes that must arrive; the rest is alignment and may lie past the end of the file
    uint64_t slot_offset = 0;
    uint16_t file = 0;
    uint8_t matrices = 0; // bit m: the read brings matrix m
};

// How one expert lies in a slot.
struct Place {
    uint32_t first_piece = 0; // in ExpertLayer::pieces
    uint32_t n_piece = 0;
    uint64_t slot_bytes = 0;
    uint64_t at[k_max_matrix] = {}; // where matrix m begins
};

// How every expert of a layer lies in its slot when the layer is whole in memory (whole.cpp): alike, and in one type
// a matrix, so that the distance from expert to expert is a stride.
struct PackedPlace {
    bool possible = false;
    uint64_t at[k_max_matrix] = {};
    uint64_t slot_bytes = 0;
};

// The experts of one mixture layer. matrices are in the order in which llama.cpp multiplies by them.
struct ExpertLayer {
    uint32_t layer = 0;
    uint32_t n_expert = 0;
    ExpertIndex first = 0; // ExpertIndex of its expert 0
    std::vector<Matrix> matrices;
    std::vector<Slice> slices; // [expert][matrix]
    std::vector<Place> places; // [expert], set by place_experts
    std::vector<Piece> pieces;
    PackedPlace packed; // likewise

    Slice const &slice(uint32_t expert, uint32_t matrix) const { return slices[expert * matrices.size() + matrix]; }
    uint32_t all_matrices() const { return (1u << matrices.size()) - 1; }
};

struct Layout {
    std::vector<std::string> paths; // files, by Slice::file
    std::vector<ExpertLayer> layers;
    uint32_t n_expert_used = 0; // top-k, the largest of any layer
    uint32_t n_expert_total = 0;

    PolicyShape shape() const;
};

// Sets places and pieces for reads aligned to `alignment` bytes. Matrices of an expert that follow each other in a
// file become one read.
void place_experts(Layout *layout, uint32_t alignment);

// Groups experts by size: at most k_max_class classes, chosen so that slots larger than their experts waste least.
// on_gpu: by ExpertIndex 1 where the cache never holds the expert; may be empty. When that is every expert the classes
// are those of all.
SlotClasses slot_classes(const Layout &layout, const std::vector<uint8_t> &on_gpu = {});

// The read that brings one matrix alone.
struct Span {
    uint64_t offset;
    uint32_t bytes;
    uint32_t need;
    uint32_t skip; // where in it the slice begins
};
inline Span aligned_span(Slice const &s, uint32_t alignment) {
    uint64_t const begin = s.offset / alignment * alignment;
    uint64_t const end = s.offset + s.bytes;
    return Span{begin, static_cast<uint32_t>((end + alignment - 1) / alignment * alignment - begin),
                static_cast<uint32_t>(end - begin), static_cast<uint32_t>(s.offset - begin)};
}

} // namespace emoe
