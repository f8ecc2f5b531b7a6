// The routing of a batch through one layer, grouped by expert.
#pragma once

#include <cstdint>
#include <vector>

namespace emoe {

// Expert of token t in rank k is ids[t * token_stride + k * rank_stride] (strides in bytes).
struct Routing {
    const uint8_t *ids = nullptr; // int32_t values
    uint32_t n_token = 0;
    uint32_t n_rank = 0; // top-k
    uint64_t token_stride = 0;
    uint64_t rank_stride = 0;
    const float *weights = nullptr; // router weights [n_token][n_rank], nullptr when they are not at hand
    const float *input = nullptr;   // router input of a single token [n_embd], nullptr when it is not at hand
    // By token: 1 / mean square of the residual stream, nullptr where nothing asks for it.
    const float *inverse_square = nullptr;
    int32_t at(uint32_t token, uint32_t rank) const {
        return *reinterpret_cast<const int32_t *>(ids + token * token_stride + rank * rank_stride);
    }
};

struct Row { // one (token, rank) pair
    uint32_t token;
    uint32_t rank;
};

// An expert of the visit and the rows routed to it: rows[first_row .. first_row + n_row).
struct VisitExpert {
    uint32_t expert;
    uint32_t first_row;
    uint32_t n_row;
    float weight; // router weight, mean over its rows; 0 when unknown
};

// A (token, rank) pair whose expert a GPU computes.
struct GpuRow {
    uint32_t token;
    uint32_t rank;
    uint32_t expert; // of the layer
};

class RoutingGroups {
public:
    // n_expert: of the largest layer.
    explicit RoutingGroups(uint32_t n_expert) : index_of_(n_expert, -1) {}
    // Collects the rows of each distinct expert, in order of first appearance. n_expert: of this layer. on_gpu: by expert
    // of it 1 where a GPU computes, nullptr: nowhere. skip: by token and rank 1 for a row that is left out, nullptr: none.
    void group(const Routing &routing, uint32_t n_expert, const uint8_t *on_gpu, const uint8_t *skip = nullptr);

    std::vector<VisitExpert> experts;
    std::vector<Row> rows;
    std::vector<uint32_t> by_rows;        // indices of experts, those with most rows first
    std::vector<Row> skipped;             // left out, in the order of tokens and ranks
    std::vector<GpuRow> gpu_rows;         // in the order of tokens and ranks
    std::vector<VisitExpert> gpu_experts; // theirs; first_row says nothing

private:
    std::vector<int32_t> index_of_; // by expert of the layer: index into experts, -1
};

} // namespace emoe
