#include "cache/policy.h"

#include <algorithm>
#include <cmath>

namespace emoe {

namespace {

// Time in visits: a layer's expert is at best used again one pass over the layers later.
class Clocked : public EvictionPolicy {
public:
    explicit Clocked(const PolicyShape &shape) : last_(shape.n_expert(), 0), uses_(shape.n_expert(), 0.0) {}
    void on_visit(uint32_t, uint32_t, const Use *uses, size_t n_use) override {
        now_++;
        for (size_t i = 0; i < n_use; i++) {
            last_[uses[i].expert] = now_;
            uses_[uses[i].expert] += 1;
        }
    }

protected:
    double age(ExpertIndex expert) const { return static_cast<double>(now_ - last_[expert]); }
    double uses(ExpertIndex expert) const { return uses_[expert]; }

private:
    uint64_t now_ = 0;
    std::vector<uint64_t> last_;
    std::vector<double> uses_;
};

class Lru final : public Clocked {
public:
    using Clocked::Clocked;
    double badness(ExpertIndex expert) const override { return age(expert); }
};

class Lfu final : public Clocked {
public:
    using Clocked::Clocked;
    // Ties go to the older: age is below one use for any run a person waits for.
    double badness(ExpertIndex expert) const override { return age(expert) * 1e-9 - uses(expert); }
};

// Least frequently, recently used: evict the largest age / (1 + uses).
class Lfru final : public Clocked {
public:
    using Clocked::Clocked;
    double badness(ExpertIndex expert) const override { return age(expert) / (1.0 + uses(expert)); }
};

// Minus Recent Score (HybriMoE, section 4.3): an average of router weights of the top-k, alpha of it the newest.
class Mrs final : public EvictionPolicy {
public:
    explicit Mrs(const PolicyShape &shape) : first_(shape.first), score_(shape.n_expert(), 0.0) {}
    void on_visit(uint32_t layer, uint32_t n_token, const Use *uses, size_t n_use) override {
        for (ExpertIndex e = first_[layer]; e < first_[layer + 1]; e++) score_[e] *= 1 - k_alpha;
        for (size_t i = 0; i < n_use; i++)
            score_[uses[i].expert] += k_alpha * static_cast<double>(uses[i].weight) * uses[i].n_row / n_token;
    }
    double badness(ExpertIndex expert) const override { return -score_[expert]; }

private:
    static constexpr double k_alpha = 0.1; // the best of 0.05, 0.1, 0.3 in replay
    std::vector<ExpertIndex> first_;
    std::vector<double> score_;
};

// Evict what is needed again last, as Belady would if the future were known: the expected number of visits until the
// next use is the way to its layer, d, plus one pass over all layers for every token that will not use it, (1 - p) / p.
// p, the probability of use by a token, mixes a slow average, which says what the text is about, with a fast one,
// which says what the last tokens were about. Constants by replay on three texts: docs/experiments/eviction-policy.md.
class NextUse final : public EvictionPolicy {
public:
    explicit NextUse(const PolicyShape &shape)
        : shape_(shape), layer_of_(shape.n_expert()), slow_(shape.n_expert()), fast_(shape.n_expert()),
          n_token_(shape.n_layer(), k_prior_tokens), used_(shape.n_expert(), 0.0f) {
        for (uint32_t l = 0; l < shape.n_layer(); l++) {
            uint32_t const n = shape.first[l + 1] - shape.first[l];
            float const prior = std::min(1.0f, static_cast<float>(shape.n_expert_used) / static_cast<float>(n));
            for (ExpertIndex e = shape.first[l]; e < shape.first[l + 1]; e++) {
                layer_of_[e] = l;
                slow_[e] = fast_[e] = prior;
            }
        }
    }

    void on_visit(uint32_t layer, uint32_t n_token, const Use *uses, size_t n_use) override {
        layer_ = layer;
        ExpertIndex const begin = shape_.first[layer], end = shape_.first[layer + 1];
        for (size_t i = 0; i < n_use; i++)
            used_[uses[i].expert] = static_cast<float>(uses[i].n_row) / static_cast<float>(n_token);
        n_token_[layer] += n_token;
        // A batch of n tokens moves an average as n single tokens of its mean would; young averages are plain means.
        double const young = n_token / n_token_[layer];
        auto const slow = static_cast<float>(std::max(young, 1 - std::pow(1 - k_slow, n_token)));
        auto const fast = static_cast<float>(std::max(young, 1 - std::pow(1 - k_fast, n_token)));
        for (ExpertIndex e = begin; e < end; e++) {
            slow_[e] += slow * (used_[e] - slow_[e]);
            fast_[e] += fast * (used_[e] - fast_[e]);
            used_[e] = 0;
        }
    }

    double badness(ExpertIndex expert) const override {
        double const p = std::max(1e-4, probability(expert));
        uint32_t const n = shape_.n_layer();
        uint32_t const to = layer_of_[expert];
        uint32_t const d = to > layer_ ? to - layer_ : to + n - layer_;
        return d + n * (1 - p) / p;
    }

    double probability(ExpertIndex expert) const override {
        return k_fast_share * fast_[expert] + (1 - k_fast_share) * slow_[expert];
    }
    std::vector<float> rates() const override { return slow_; }
    void warm_start(const std::vector<float> &rates) override {
        if (rates.size() != slow_.size()) return;
        slow_ = fast_ = rates;
        for (float &r : slow_) r = std::min(1.0f, std::max(0.0f, r));
        fast_ = slow_;
        std::fill(n_token_.begin(), n_token_.end(), k_warm_tokens);
    }

private:
    static constexpr double k_slow = 0.005, k_fast = 0.2, k_fast_share = 0.3;
    static constexpr double k_prior_tokens = 4; // what the uniform prior is worth
    static constexpr double k_warm_tokens = 64; // what another text's rates are worth

    PolicyShape const shape_;
    uint32_t layer_ = 0;
    std::vector<uint32_t> layer_of_;
    std::vector<float> slow_, fast_;
    std::vector<double> n_token_; // by layer: tokens seen
    std::vector<float> used_;     // scratch
};

} // namespace

std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, const PolicyShape &shape) {
    switch (kind) {
    case PolicyKind::lru: return std::make_unique<Lru>(shape);
    case PolicyKind::lfu: return std::make_unique<Lfu>(shape);
    case PolicyKind::lfru: return std::make_unique<Lfru>(shape);
    case PolicyKind::mrs: return std::make_unique<Mrs>(shape);
    case PolicyKind::next_use: break;
    }
    return std::make_unique<NextUse>(shape);
}

} // namespace emoe
