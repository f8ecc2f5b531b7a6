#include "pipeline/routing.h"

#include <algorithm>
#include <numeric>

namespace emoe {

void RoutingGroups::group(const Routing &routing, uint32_t n_expert, const uint8_t *on_gpu, const uint8_t *skip) {
    for (auto *list : {&experts, &gpu_experts}) {
        for (VisitExpert const &e : *list) index_of_[e.expert] = -1;
        list->clear();
    }
    gpu_rows.clear();
    skipped.clear();
    for (uint32_t t = 0; t < routing.n_token; t++)
        for (uint32_t k = 0; k < routing.n_rank; k++) {
            auto const e = static_cast<uint32_t>(routing.at(t, k));
            if (e >= n_expert) continue; // a token that routes nowhere (masked rank)
            if (skip && skip[size_t{t} * routing.n_rank + k] != 0) {
                skipped.push_back(Row{t, k});
                continue;
            }
            bool const gpu = on_gpu && on_gpu[e] != 0;
            std::vector<VisitExpert> &list = gpu ? gpu_experts : experts;
            if (index_of_[e] < 0) {
                list.push_back(VisitExpert{e, 0, 0, 0.0f});
                index_of_[e] = static_cast<int32_t>(list.size() - 1);
            }
            list[index_of_[e]].n_row++;
            if (!gpu) continue;
            gpu_rows.push_back(GpuRow{t, k, e});
            if (routing.weights) list[index_of_[e]].weight += routing.weights[size_t{t} * routing.n_rank + k];
        }
    uint32_t first = 0;
    for (VisitExpert &e : experts) {
        e.first_row = first;
        first += e.n_row;
        e.n_row = 0;
    }
    rows.resize(first);
    for (uint32_t t = 0; t < routing.n_token; t++)
        for (uint32_t k = 0; k < routing.n_rank; k++) {
            auto const id = static_cast<uint32_t>(routing.at(t, k));
            if (id >= n_expert || (on_gpu && on_gpu[id] != 0)) continue;
            if (skip && skip[size_t{t} * routing.n_rank + k] != 0) continue;
            VisitExpert &e = experts[index_of_[id]];
            rows[e.first_row + e.n_row++] = Row{t, k};
            if (routing.weights) e.weight += routing.weights[size_t{t} * routing.n_rank + k];
        }
    for (auto *list : {&experts, &gpu_experts})
        for (VisitExpert &e : *list) e.weight /= static_cast<float>(e.n_row);
    // Experts with many rows first, so that the threads that share them end together.
    by_rows.resize(experts.size());
    std::iota(by_rows.begin(), by_rows.end(), 0u);
    if (routing.n_token > 1)
        std::stable_sort(by_rows.begin(), by_rows.end(),
                         [this](uint32_t a, uint32_t b) { return experts[a].n_row > experts[b].n_row; });
}

} // namespace emoe
