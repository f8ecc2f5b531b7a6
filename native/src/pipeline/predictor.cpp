#include "pipeline/predictor.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace emoe {

namespace {

// Steps of the regression: by these a few hundred tokens are remembered.
constexpr float k_rate = 0.05f, k_rate_own = 0.02f;

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) &&                       \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define EMOE_WIDE __attribute__((target_clones("arch=skylake-avx512", "avx2", "default"), optimize("O3")))
#else
#define EMOE_WIDE
#endif

EMOE_WIDE int32_t dot(const int8_t *a, const int8_t *b, uint32_t n) {
    int32_t sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += static_cast<int16_t>(a[i]) * static_cast<int16_t>(b[i]);
    return sum;
}

// One scale for all: the largest becomes 127.
float quantize(const float *from, uint32_t n, int8_t *to) {
    float most = 0;
    for (uint32_t i = 0; i < n; i++) most = std::max(most, std::fabs(from[i]));
    float const inverse = most > 0 && std::isfinite(most) ? 127.0f / most : 0.0f;
    for (uint32_t i = 0; i < n; i++) to[i] = static_cast<int8_t>(std::lrint(from[i] * inverse));
    return most / 127.0f;
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

} // namespace

Predictor::Predictor(const PolicyShape &shape, uint32_t n_embd)
    : shape_(shape), n_embd_(n_embd), layers_(shape.n_layer()), input_(n_embd) {
    for (uint32_t l = 0; l < shape.n_layer(); l++) {
        layers_[l].first = shape.first[l];
        layers_[l].n_expert = shape.first[l + 1] - shape.first[l];
    }
}

uint64_t Predictor::bytes(const PolicyShape &shape, uint32_t n_embd) {
    uint64_t const per_expert = n_embd + sizeof(float) + 1 + k_max_depth * 3 * sizeof(float);
    return shape.n_expert() * per_expert + shape.n_layer() * n_embd * sizeof(float);
}

void Predictor::set_router(uint32_t layer, const float *rows, const float *norm) {
    Layer &l = layers_[layer];
    l.rows.resize(size_t{l.n_expert} * n_embd_);
    l.scale.resize(l.n_expert);
    l.used.assign(l.n_expert, 0);
    for (Guess &g : l.guesses) {
        g.z.assign(l.n_expert, 0);
        g.p.assign(l.n_expert, 0);
        g.own.assign(l.n_expert, 0);
    }
    scratch_.resize(n_embd_);
    for (uint32_t e = 0; e < l.n_expert; e++) {
        const float *row = rows + size_t{e} * n_embd_;
        for (uint32_t i = 0; i < n_embd_; i++) scratch_[i] = norm ? row[i] * norm[i] : row[i];
        l.scale[e] = quantize(scratch_.data(), n_embd_, l.rows.data() + size_t{e} * n_embd_);
    }
    l.norm_inverse.clear();
    for (uint32_t i = 0; norm && i < n_embd_; i++)
        l.norm_inverse.push_back(std::fabs(norm[i]) > 1e-6f ? 1.0f / norm[i] : 0.0f);
}

void Predictor::set_input(uint32_t layer, const float *input) {
    Layer const &l = layers_[layer];
    if (l.norm_inverse.empty()) {
        quantize(input, n_embd_, input_.data());
    } else {
        scratch_.resize(n_embd_);
        for (uint32_t i = 0; i < n_embd_; i++) scratch_[i] = input[i] * l.norm_inverse[i];
        quantize(scratch_.data(), n_embd_, input_.data());
    }
    for (uint32_t d = 1; d <= k_max_depth && layer + d < layers_.size(); d++)
        layers_[layer + d].guesses[d - 1].made = false;
}

const float *Predictor::guess(uint32_t layer, uint32_t d) {
    if (layer + d >= layers_.size() || d == 0 || d > k_max_depth) return nullptr;
    Layer &l = layers_[layer + d];
    if (l.rows.empty() || l.n_expert < 2) return nullptr;
    Guess &g = l.guesses[d - 1];
    if (g.made) return g.p.data();
    float sum = 0, squares = 0;
    for (uint32_t e = 0; e < l.n_expert; e++) {
        float const s =
            l.scale[e] * static_cast<float>(dot(l.rows.data() + size_t{e} * n_embd_, input_.data(), n_embd_));
        g.z[e] = s;
        sum += s;
        squares += s * s;
    }
    auto const n = static_cast<float>(l.n_expert);
    float const mean = sum / n;
    float const deviation = std::sqrt(std::max(1e-20f, squares / n - mean * mean));
    uint32_t const k = std::min(shape_.n_expert_used, l.n_expert - 1);
    scratch_.assign(g.z.begin(), g.z.end());
    std::nth_element(scratch_.begin(), scratch_.begin() + k - 1, scratch_.end(), std::greater<float>());
    float const inside = scratch_[k - 1];
    float const outside = *std::max_element(scratch_.begin() + k, scratch_.end());
    float const boundary = 0.5f * (inside + outside);
    for (uint32_t e = 0; e < l.n_expert; e++) {
        g.z[e] = std::clamp((g.z[e] - boundary) / deviation, -4.0f, 4.0f);
        g.p[e] = sigmoid(g.slope * g.z[e] + g.again * static_cast<float>(l.used[e]) + g.base + g.own[e]);
    }
    g.made = true;
    return g.p.data();
}

void Predictor::learn(uint32_t layer, const Use *uses, size_t n_use) {
    Layer &l = layers_[layer];
    if (l.rows.empty()) return;
    std::vector<uint8_t> &now = l.used;
    std::vector<uint8_t> const before = now;
    std::fill(now.begin(), now.end(), uint8_t{0});
    for (size_t i = 0; i < n_use; i++) now[uses[i].expert - l.first] = 1;
    for (uint32_t d = 0; d < k_max_depth; d++) {
        Guess &g = l.guesses[d];
        if (!g.made) continue;
        g.made = false;
        float slope = 0, again = 0, base = 0;
        for (uint32_t e = 0; e < l.n_expert; e++) {
            float const miss = static_cast<float>(now[e]) - g.p[e];
            slope += miss * g.z[e];
            again += miss * static_cast<float>(before[e]);
            base += miss;
            g.own[e] = std::clamp(g.own[e] + k_rate_own * miss, -3.0f, 3.0f);
        }
        float const step = k_rate * 4.0f / static_cast<float>(l.n_expert);
        g.slope = std::clamp(g.slope + step * slope, 0.0f, 8.0f);
        g.again = std::clamp(g.again + step * again, -1.0f, 4.0f);
        g.base = std::clamp(g.base + step * base, -4.0f, 2.0f);
        scratch_.assign(g.p.begin(), g.p.end());
        size_t const k = std::min<size_t>(n_use, l.n_expert);
        if (k == 0) continue;
        std::nth_element(scratch_.begin(), scratch_.begin() + static_cast<ptrdiff_t>(k) - 1, scratch_.end(),
                         std::greater<float>());
        float const least = scratch_[k - 1];
        l.accuracy.n_used[d] += k;
        for (uint32_t e = 0; e < l.n_expert; e++) l.accuracy.n_found[d] += now[e] != 0 && g.p[e] >= least ? 1 : 0;
    }
}

} // namespace emoe
