// The eviction policies for hosts that hold experts themselves (edgemoe.h, "eviction policies").
#include "capi/shape.h"

#include <edgemoe.h>

#include <algorithm>
#include <memory>
#include <vector>

using namespace emoe;

struct emoe_policy {
    PolicyShape shape;
    std::unique_ptr<EvictionPolicy> policy;
    std::vector<Use> uses; // scratch
};

emoe_status emoe_policy_open(uint32_t kind, const uint32_t *n_expert, uint32_t n_layer, uint32_t n_expert_used,
                             emoe_policy **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(out, "out");
        if (kind >= k_n_policy) fail(EMOE_ERR_ARGUMENT, "unknown eviction policy %u", kind);
        auto made = std::make_unique<emoe_policy>();
        made->shape = read_shape(n_expert, n_layer, n_expert_used);
        made->policy = make_policy(static_cast<PolicyKind>(kind), made->shape);
        *out = made.release();
    });
}

void emoe_policy_close(emoe_policy *policy) { delete policy; }

emoe_status emoe_policy_visit(emoe_policy *policy, uint32_t layer, uint32_t n_token, const uint32_t *experts,
                              const uint32_t *n_row, const float *weight, uint32_t n_use, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(policy, "policy");
        if (n_use != 0) {
            check_pointer(experts, "experts");
            check_pointer(n_row, "n_row");
            check_pointer(weight, "weight");
        }
        if (n_token == 0) fail(EMOE_ERR_ARGUMENT, "a batch of no tokens");
        if (layer >= policy->shape.n_layer()) fail(EMOE_ERR_ARGUMENT, "there is no layer %u", layer);
        uint32_t const first = policy->shape.first[layer];
        policy->uses.clear();
        for (uint32_t i = 0; i < n_use; i++) {
            if (experts[i] >= policy->shape.first[layer + 1] - first)
                fail(EMOE_ERR_ARGUMENT, "there is no expert %u in layer %u", experts[i], layer);
            policy->uses.push_back({first + experts[i], n_row[i], weight[i]});
        }
        policy->policy->on_visit(layer, n_token, policy->uses.data(), policy->uses.size());
    });
}

emoe_status emoe_policy_badness(const emoe_policy *policy, float *badness, uint64_t n, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(policy, "policy");
        check_pointer(badness, "badness");
        if (n != policy->shape.n_expert())
            fail(EMOE_ERR_ARGUMENT, "%llu experts, the policy has %u", static_cast<unsigned long long>(n),
                 policy->shape.n_expert());
        for (uint32_t i = 0; i < policy->shape.n_expert(); i++)
            badness[i] = static_cast<float>(policy->policy->badness(i));
    });
}

uint64_t emoe_policy_rates(const emoe_policy *policy, float *rates, uint64_t cap) {
    uint64_t n = 0;
    (void)guarded(nullptr, [&] {
        if (policy) n = copy_out(policy->policy->rates(), rates, cap);
    });
    return n;
}

void emoe_policy_warm_start(emoe_policy *policy, const float *rates, uint64_t n) {
    (void)guarded(nullptr, [&] {
        if (policy && rates && n == policy->shape.n_expert())
            policy->policy->warm_start(std::vector<float>(rates, rates + n));
    });
}
