#include "cache/policy.h"

namespace emoe {

namespace {

class Lru final : public EvictionPolicy {
public:
    explicit Lru(uint32_t n_expert) : last_(n_expert, 0) {}
    void on_use(ExpertIndex expert, uint64_t now) override { last_[expert] = now; }
    double badness(ExpertIndex expert, uint64_t now) const override { return static_cast<double>(now - last_[expert]); }

private:
    std::vector<uint64_t> last_;
};

// Least frequently, recently used: evict the largest age / (1 + uses). Unlike LRU it does not fall to zero hits
// when the cache holds less than one token's worth of experts: often used ones stay through the sweep.
class Lfru final : public EvictionPolicy {
public:
    explicit Lfru(uint32_t n_expert) : entries_(n_expert) {}
    void on_use(ExpertIndex expert, uint64_t now) override {
        Entry &e = entries_[expert];
        e.uses += 1;
        e.last = now;
    }
    double badness(ExpertIndex expert, uint64_t now) const override {
        Entry const &e = entries_[expert];
        return static_cast<double>(now - e.last) / (1.0 + e.uses);
    }

private:
    struct Entry {
        uint64_t last = 0;
        double uses = 0;
    };
    std::vector<Entry> entries_;
};

} // namespace

std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, uint32_t n_expert) {
    if (kind == PolicyKind::lru) return std::make_unique<Lru>(n_expert);
    return std::make_unique<Lfru>(n_expert);
}

} // namespace emoe
