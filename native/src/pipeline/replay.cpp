#include "pipeline/replay.h"

#include <algorithm>
#include <functional>

namespace emoe {

namespace {

using Badness = std::function<double(ExpertIndex)>;

// Slots of one cache, or of one layer of it. What the running visit uses is never evicted for it.
class Pool {
public:
    Pool(uint32_t n_slot, uint32_t n_expert) : n_slot_(n_slot), here_(n_expert, 0) {}
    bool has(ExpertIndex e) const { return here_[e] != 0; }
    // Brings the missing experts in. Those for which there is no room pass through.
    void admit(const std::vector<ExpertIndex> &missing, const std::vector<uint8_t> &used, const Badness &badness) {
        size_t const room = n_slot_ - members_.size();
        if (missing.size() > room) {
            ranking_.clear();
            for (ExpertIndex e : members_)
                if (!used[e]) ranking_.emplace_back(badness(e), e);
            size_t const n = std::min(missing.size() - room, ranking_.size());
            if (n > 0)
                std::nth_element(ranking_.begin(), ranking_.begin() + static_cast<ptrdiff_t>(n) - 1, ranking_.end(),
                                 std::greater<>());
            for (size_t i = 0; i < n; i++) here_[ranking_[i].second] = 0;
            members_.erase(
                std::remove_if(members_.begin(), members_.end(), [this](ExpertIndex e) { return !here_[e]; }),
                members_.end());
        }
        for (ExpertIndex e : missing) {
            if (members_.size() == n_slot_) break;
            here_[e] = 1;
            members_.push_back(e);
        }
    }

private:
    uint32_t const n_slot_;
    std::vector<uint8_t> here_;
    std::vector<ExpertIndex> members_;
    std::vector<std::pair<double, ExpertIndex>> ranking_;
};

ReplayResult play(const PolicyShape &shape, const std::vector<RecordedVisit> &visits, const std::vector<Use> &uses,
                  uint32_t n_slot, bool per_layer, size_t from, const std::function<void(size_t)> &before,
                  const Badness &badness) {
    std::vector<Pool> pools;
    for (uint32_t i = 0; i < (per_layer ? shape.n_layer() : 1); i++)
        pools.emplace_back(per_layer ? n_slot / shape.n_layer() : n_slot, shape.n_expert());
    ReplayResult result;
    std::vector<uint8_t> used(shape.n_expert(), 0);
    std::vector<ExpertIndex> missing;
    for (size_t v = 0; v < visits.size(); v++) {
        RecordedVisit const &visit = visits[v];
        const Use *begin = uses.data() + visit.first_use;
        before(v);
        Pool &pool = pools[per_layer ? visit.layer : 0];
        missing.clear();
        for (size_t i = 0; i < visit.n_use; i++) {
            used[begin[i].expert] = 1;
            if (!pool.has(begin[i].expert)) missing.push_back(begin[i].expert);
        }
        if (v >= from) {
            result.n_use += visit.n_use;
            result.n_miss += missing.size();
        }
        pool.admit(missing, used, badness);
        for (size_t i = 0; i < visit.n_use; i++) used[begin[i].expert] = 0;
    }
    return result;
}

} // namespace

ReplayResult replay(const PolicyShape &shape, const std::vector<RecordedVisit> &visits, const std::vector<Use> &uses,
                    PolicyKind kind, uint32_t n_slot, bool per_layer, size_t from) {
    auto const policy = make_policy(kind, shape);
    return play(
        shape, visits, uses, n_slot, per_layer, from,
        [&](size_t v) {
            RecordedVisit const &visit = visits[v];
            policy->on_visit(visit.layer, visit.n_token, uses.data() + visit.first_use, visit.n_use);
        },
        [&](ExpertIndex e) { return policy->badness(e); });
}

ReplayResult replay_belady(const PolicyShape &shape, const std::vector<RecordedVisit> &visits,
                           const std::vector<Use> &uses, uint32_t n_slot, size_t from) {
    // when[e]: visits that use e, the next one last.
    std::vector<std::vector<size_t>> when(shape.n_expert());
    for (size_t v = visits.size(); v-- > 0;)
        for (size_t i = 0; i < visits[v].n_use; i++) when[uses[visits[v].first_use + i].expert].push_back(v);
    return play(
        shape, visits, uses, n_slot, false, from,
        [&](size_t v) {
            for (size_t i = 0; i < visits[v].n_use; i++) when[uses[visits[v].first_use + i].expert].pop_back();
        },
        [&](ExpertIndex e) { return when[e].empty() ? 1e18 : static_cast<double>(when[e].back()); });
}

} // namespace emoe
