// emoe_replay of edgemoe.h: recorded routing as arrays, checked, to what pipeline/replay.h plays.
#include "pipeline/replay.h"

#include "base/error.h"
#include "base/guard.h"

#include <edgemoe.h>

#include <algorithm>

using namespace emoe;

emoe_status emoe_replay(const emoe_replay_params *params, uint64_t *n_use, uint64_t *n_miss, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(n_use, "n_use");
        check_pointer(n_miss, "n_miss");
        emoe_replay_params const p = read_struct(params, "emoe_replay_params");
        bool const belady = p.policy == EMOE_REPLAY_BELADY;
        if (!belady && p.policy >= k_n_policy) fail(EMOE_ERR_ARGUMENT, "unknown eviction policy %u", p.policy);
        if (p.n_layer == 0 || p.n_slot == 0) fail(EMOE_ERR_ARGUMENT, "no layers or no slots to replay with");
        PolicyShape shape;
        shape.n_expert_used = p.n_expert_used;
        shape.first.push_back(0);
        for (uint32_t l = 0; l < p.n_layer; l++) shape.first.push_back(shape.first.back() + p.n_expert[l]);
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
