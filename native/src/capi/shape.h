// The geometry that policies and replay are given as an array.
#pragma once

#include "base/guard.h"
#include "cache/policy.h"

namespace emoe {

constexpr uint64_t k_max_expert = uint64_t{1} << 24; // of all layers: more than a hundred times any model's

inline PolicyShape read_shape(const uint32_t *n_expert, uint32_t n_layer, uint32_t n_expert_used) {
    check_pointer(n_expert, "n_expert");
    if (n_layer == 0 || n_expert_used == 0) fail(EMOE_ERR_ARGUMENT, "a policy for no experts");
    PolicyShape shape;
    shape.n_expert_used = n_expert_used;
    uint64_t sum = 0;
    shape.first.push_back(0);
    for (uint32_t l = 0; l < n_layer; l++) {
        sum += n_expert[l];
        if (sum > k_max_expert)
            fail(EMOE_ERR_ARGUMENT, "more than %llu experts", static_cast<unsigned long long>(k_max_expert));
        shape.first.push_back(static_cast<ExpertIndex>(sum));
    }
    return shape;
}

} // namespace emoe
