// Which experts to give up. Pure: no I/O, no clock, no threads; time is the count of layer visits.
//
// Every policy is told each visit of a layer and answers one question: how bad is it to lose this expert now?
// The replay (pipeline/replay.h) runs these same objects over recorded routing.
#pragma once

#include <edgemoe.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emoe {

using ExpertIndex = uint32_t; // experts numbered through all MoE layers: layer's first + number in the layer
constexpr ExpertIndex k_no_expert = UINT32_MAX;

enum class PolicyKind : uint32_t {
    next_use = EMOE_POLICY_NEXT_USE,
    lfru = EMOE_POLICY_LFRU,
    lru = EMOE_POLICY_LRU,
    lfu = EMOE_POLICY_LFU,
    mrs = EMOE_POLICY_MRS,
};
constexpr uint32_t k_n_policy = 5;

// What a policy knows of the model before the first token.
struct PolicyShape {
    std::vector<ExpertIndex> first; // of each layer, and one past the last expert
    uint32_t n_expert_used = 0;     // top-k
    uint32_t n_layer() const { return static_cast<uint32_t>(first.size()) - 1; }
    uint32_t n_expert() const { return first.back(); }
};

// One expert of a visit.
struct Use {
    ExpertIndex expert = 0;
    uint32_t n_row = 0;  // tokens of the batch routed to it
    float weight = 0.0f; // its router weight, mean over those tokens; 0 when unknown
};

class EvictionPolicy {
public:
    virtual ~EvictionPolicy() = default;
    // A batch of n_token passes a layer and uses these experts, whether they are in the cache or not.
    virtual void on_visit(uint32_t layer, uint32_t n_token, const Use *uses, size_t n_use) = 0;
    // The larger, the sooner to be evicted.
    virtual double badness(ExpertIndex expert) const = 0;

    // Probability that the next token uses the expert; 0 when the policy has no idea.
    virtual double probability(ExpertIndex) const { return 0; }
    // Long-run probability, for the next run's warm start; empty when it keeps none.
    virtual std::vector<float> rates() const { return {}; }
    // What an earlier run's rates() said. Ignored when the length is another.
    virtual void warm_start(const std::vector<float> &) {}
};

std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, const PolicyShape &shape);

} // namespace emoe
