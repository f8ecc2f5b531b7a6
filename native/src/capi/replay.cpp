// emoe_replay of edgemoe.h: recorded routing as arrays, checked, to what pipeline/replay.h plays.
#include "pipeline/replay.h"

#include "capi/shape.h"

#include <edgemoe.h>

#include <algorithm>

using namespace emoe;

namespace {

void check_visits(const emoe_replay_params &p) {
    if (p.n_visit == 0) return;
    check_pointer(p.layer, "layer");
    check_pointer(p.n_token, "n_token");
    check_pointer(p.n_use, "n_use");
    check_pointer(p.expert, "expert");
    check_pointer(p.n_row, "n_row");
    check_pointer(p.weight, "weight");
}

} // namespace

emoe_status emoe_replay(const emoe_replay_params *params, uint64_t *n_use, uint64_t *n_miss, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(n_use, "n_use");
        check_pointer(n_miss, "n_miss");
        emoe_replay_params const p = read_struct(params, "emoe_replay_params");
        bool const belady = p.policy == EMOE_REPLAY_BELADY;
        if (!belady && p.policy >= k_n_policy) fail(EMOE_ERR_ARGUMENT, "unknown eviction policy %u", p.policy);
        if (p.n_slot == 0) fail(EMOE_ERR_ARGUMENT, "no slots to replay with");
        PolicyShape const shape = read_shape(p.n_expert, p.n_layer, p.n_expert_used);
        check_visits(p);
        std::vector<RecordedVisit> visits(p.n_visit);
        std::vector<Use> uses;
        for (uint64_t v = 0; v < p.n_visit; v++) {
            uint32_t const l = p.layer[v];
            if (l >= p.n_layer)
                fail(EMOE_ERR_FORMAT, "visit %llu is of layer %u of %u", (unsigned long long)v, l, p.n_layer);
            visits[v] = RecordedVisit{l, std::max(1u, p.n_token[v]), uses.size(), p.n_use[v]};
            for (uint32_t i = 0; i < p.n_use[v]; i++) {
                size_t const j = uses.size();
                if (p.expert[j] >= p.n_expert[l])
                    fail(EMOE_ERR_FORMAT, "visit %llu uses expert %u of %u", (unsigned long long)v, p.expert[j],
                         p.n_expert[l]);
                uses.push_back(Use{shape.first[l] + p.expert[j], p.n_row[j], p.weight[j]});
            }
        }
        ReplayResult const r = belady ? replay_belady(shape, visits, uses, p.n_slot, p.from_visit)
                                      : replay(shape, visits, uses, static_cast<PolicyKind>(p.policy), p.n_slot,
                                               p.per_layer != 0, p.from_visit);
        *n_use = r.n_use;
        *n_miss = r.n_miss;
    });
}
