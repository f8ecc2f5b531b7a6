// Plays recorded routing through a policy at a number of slots: what would have been hit? No memory, no reads.
//
// The policies are the shipped ones (cache/policy.h). Belady's optimum knows the future: evict what is used again last.
#pragma once

#include "cache/policy.h"

#include <cstdint>
#include <vector>

namespace emoe {

struct RecordedVisit {
    uint32_t layer = 0;
    uint32_t n_token = 0;
    size_t first_use = 0; // in the array of uses
    size_t n_use = 0;
};

struct ReplayResult {
    uint64_t n_use = 0;
    uint64_t n_miss = 0;
};

// per_layer: each layer has n_slot / n_layer slots of its own. Uses in visits before `from` fill the cache and are
// not counted. Experts are taken to be of one size.
ReplayResult replay(const PolicyShape &shape, const std::vector<RecordedVisit> &visits, const std::vector<Use> &uses,
                    PolicyKind kind, uint32_t n_slot, bool per_layer, size_t from);
ReplayResult replay_belady(const PolicyShape &shape, const std::vector<RecordedVisit> &visits,
                           const std::vector<Use> &uses, uint32_t n_slot, size_t from);

} // namespace emoe
