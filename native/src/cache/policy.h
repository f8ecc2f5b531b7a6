// Which experts to give up. Pure: no I/O, no clock, no threads; time is the count of layer visits.
#pragma once

#include <edgemoe.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace emoe {

using ExpertIndex = uint32_t; // experts numbered through all MoE layers: layer's first + number in the layer
constexpr ExpertIndex k_no_expert = UINT32_MAX;

enum class PolicyKind : uint32_t { lfru = EMOE_POLICY_LFRU, lru = EMOE_POLICY_LRU };

class EvictionPolicy {
public:
    virtual ~EvictionPolicy() = default;
    // The expert was used at time now, whether it was in the cache or not.
    virtual void on_use(ExpertIndex expert, uint64_t now) = 0;
    // The larger, the sooner to be evicted.
    virtual double badness(ExpertIndex expert, uint64_t now) const = 0;
};

std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, uint32_t n_expert);

} // namespace emoe
