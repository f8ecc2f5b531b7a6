#include "llama/compensate.h"

#include "base/error.h"
#include "llama/blocks.h"

#include <ggml.h>

#include <edgemoe.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace emoe {

namespace {

constexpr float k_most = 65504; // scales are halves
constexpr uint32_t k_shortlist = 6;

// The rows' common part: the factor, and what it says of single columns.
struct Factor {
    const float *at; // [n][n], upper
    uint32_t n;
    std::vector<float> weight; // 1 / diagonal^2: what a squared error of a column costs

    Factor(const float *values, uint32_t size) : at(values), n(size) {
        for (uint32_t i = 0; i < n; i++) {
            float const d = row(i)[i];
            if (!(d > 0) || !std::isfinite(d)) fail(EMOE_ERR_ARGUMENT, "the factor is not positive at column %u", i);
            weight.push_back(1 / (d * d));
        }
    }
    const float *row(uint32_t i) const { return at + size_t{i} * n; }
};

// Column i becomes `rounded`; the columns behind it make its error good. Leaves the error in w[i].
void settle(const Factor &f, float *w, uint32_t i, float rounded) {
    const float *u = f.row(i);
    float const e = (w[i] - rounded) / u[i];
    w[i] = e;
    for (uint32_t k = i + 1; k < f.n; k++) w[k] -= e * u[k];
}

// ---------------------------------------------------------------- a code a weight

uint16_t nearest(const BlockForm &form, float wanted) {
    auto const first = form.values.begin();
    auto const above = std::lower_bound(first, form.values.end(), wanted);
    if (above == first) return 0;
    if (above == form.values.end()) return static_cast<uint16_t>(form.values.size() - 1);
    auto const place = static_cast<uint16_t>(above - first);
    return wanted - *(above - 1) <= *above - wanted ? static_cast<uint16_t>(place - 1) : place;
}

void round_scalars(const BlockForm &form, const Factor &f, float *w, uint8_t *raw) {
    Scales const s = form.scales(raw);
    uint16_t codes[k_most_weights];
    for (uint32_t i = 0; i < form.n_weight; i++) {
        float const scale = s.scale[i / form.step];
        float const offset = s.offset[i / form.step];
        uint16_t const place = nearest(form, scale != 0 ? (w[i] - offset) / scale : 0);
        codes[i] = form.codes.empty() ? place : form.codes[place];
        settle(f, w, i, scale * form.values[place] + offset);
    }
    form.put(raw, codes, nullptr);
}

// ---------------------------------------------------------------- a code for 4 or 8 absolute values, signs beside

// Columns begin..begin+n, whose values are x, become `rounded`: the cost, each error made good by those behind it.
float cost_of(const Factor &f, const float *x, uint32_t begin, uint32_t n, const float *rounded) {
    float e[8];
    float cost = 0;
    for (uint32_t i = 0; i < n; i++) {
        float left = x[i];
        for (uint32_t k = 0; k < i; k++) left -= e[k] * f.row(begin + k)[begin + i];
        e[i] = (left - rounded[i]) / f.row(begin + i)[begin + i];
        cost += e[i] * e[i];
    }
    return cost;
}

// The same for absolute values whose signs are free: each takes that of what it is to stand for.
float signed_cost(const Factor &f, const float *x, uint32_t begin, uint32_t n, const float *size, float *rounded) {
    float e[8];
    float cost = 0;
    for (uint32_t i = 0; i < n; i++) {
        float left = x[i];
        for (uint32_t k = 0; k < i; k++) left -= e[k] * f.row(begin + k)[begin + i];
        rounded[i] = left < 0 ? -size[i] : size[i];
        e[i] = (left - rounded[i]) / f.row(begin + i)[begin + i];
        cost += e[i] * e[i];
    }
    return cost;
}

// The codes that look best where each column is judged alone, best first.
uint32_t shortlist(const BlockForm &form, const Factor &f, const float *x, uint32_t begin, float scale,
                   uint16_t *found) {
    float linear[8], square[8], best[k_shortlist];
    for (uint32_t i = 0; i < form.group; i++) {
        float const weight = f.weight[begin + i];
        linear[i] = -2 * weight * scale * std::fabs(x[i]);
        square[i] = weight * scale * scale;
    }
    uint32_t n = 0;
    auto const n_code = static_cast<uint32_t>(form.values.size() / form.group);
    const float *v = form.values.data();
    for (uint32_t code = 0; code < n_code; code++, v += form.group) {
        float cost = 0;
        for (uint32_t i = 0; i < form.group; i++) cost += v[i] * (linear[i] + square[i] * v[i]);
        if (n == k_shortlist && cost >= best[n - 1]) continue;
        uint32_t at = n < k_shortlist ? n++ : n - 1;
        for (; at > 0 && best[at - 1] > cost; at--) {
            best[at] = best[at - 1];
            found[at] = found[at - 1];
        }
        best[at] = cost;
        found[at] = static_cast<uint16_t>(code);
    }
    return n;
}

// The best code for columns begin..begin+group, whose values are x, and what they become.
uint16_t best_code(const BlockForm &form, const Factor &f, const float *x, uint32_t begin, float scale,
                   float *rounded) {
    uint16_t listed[k_shortlist] = {};
    uint32_t const n = shortlist(form, f, x, begin, scale, listed);
    uint16_t best = listed[0];
    float least = INFINITY;
    for (uint32_t c = 0; c < n; c++) {
        float size[8], tried[8];
        for (uint32_t i = 0; i < form.group; i++) size[i] = scale * form.values[listed[c] * form.group + i];
        float const cost = signed_cost(f, x, begin, form.group, size, tried);
        if (cost >= least) continue;
        least = cost;
        best = listed[c];
        std::copy_n(tried, form.group, rounded);
    }
    return best;
}

// Of 8 columns an even number must be negative: the sign that costs least is turned.
void make_even(const Factor &f, const float *x, uint32_t begin, float *rounded) {
    if (std::count_if(rounded, rounded + 8, [](float v) { return v < 0; }) % 2 == 0) return;
    float least = INFINITY;
    uint32_t turned = 0;
    for (uint32_t i = 0; i < 8; i++) {
        rounded[i] = -rounded[i];
        float const cost = cost_of(f, x, begin, 8, rounded);
        rounded[i] = -rounded[i];
        if (cost < least) {
            least = cost;
            turned = i;
        }
    }
    rounded[turned] = -rounded[turned];
}

void round_groups(const BlockForm &form, const Factor &f, float *w, uint8_t *raw) {
    Scales const s = form.scales(raw);
    uint16_t codes[k_most_weights / 4];
    uint8_t signs[k_most_weights / 8] = {};
    for (uint32_t begin = 0; begin < form.n_weight; begin += 8) { // signs lie in bytes
        float const scale = s.scale[begin / form.step];
        float x[8], rounded[8] = {};
        std::copy_n(w + begin, 8, x);
        for (uint32_t part = 0; part < 8; part += form.group) {
            uint32_t const at = begin + part;
            codes[at / form.group] = best_code(form, f, x + part, at, scale, rounded + part);
            for (uint32_t i = part; i < part + form.group; i++) { // what the other half makes good
                float const e = (x[i] - rounded[i]) / f.row(begin + i)[begin + i];
                for (uint32_t k = i + 1; k < 8; k++) x[k] -= e * f.row(begin + i)[begin + k];
            }
        }
        if (form.even) make_even(f, w + begin, begin, rounded);
        for (uint32_t i = 0; i < 8; i++) {
            if (rounded[i] < 0) signs[begin / 8] |= static_cast<uint8_t>(1 << i);
            settle(f, w, begin + i, rounded[i]);
        }
    }
    form.put(raw, codes, signs);
}

void check_type(int type) {
    bool const known = type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(static_cast<ggml_type>(type)) > 1 &&
                       ggml_get_type_traits(static_cast<ggml_type>(type))->to_float != nullptr;
    if (!known) fail(EMOE_ERR_ARGUMENT, "type %d has no blocks to round", type);
}

} // namespace

uint32_t block_weights(int type) {
    check_type(type);
    return static_cast<uint32_t>(ggml_blck_size(static_cast<ggml_type>(type)));
}

uint64_t block_bytes(int type) {
    check_type(type);
    return ggml_type_size(static_cast<ggml_type>(type));
}

void compensate_block(int type, float *weights, const float *factor, const float *importance, uint64_t n_row,
                      uint8_t *out) {
    uint32_t const n = block_weights(type);
    uint64_t const n_byte = block_bytes(type);
    Factor const f(factor, n);
    // ggml's quantizers end the process when they meet what is no number.
    for (uint64_t i = 0; i < n_row * n; i++)
        if (!(std::fabs(weights[i]) <= k_most))
            fail(EMOE_ERR_FORMAT, "a weight became %g, which no block can hold", double{weights[i]});
    auto const kind = static_cast<ggml_type>(type);
    size_t const written = ggml_quantize_chunk(kind, weights, out, 0, static_cast<int64_t>(n_row), n, importance);
    if (written != n_row * n_byte) fail(EMOE_ERR_ARGUMENT, "ggml does not quantize to %s", ggml_type_name(kind));
    const BlockForm *form = form_of(type);
    std::vector<float> whole(form ? 0 : n);
    for (uint64_t r = 0; r < n_row; r++) {
        float *w = weights + r * n;
        uint8_t *raw = out + r * n_byte;
        if (form && form->group == 1) {
            round_scalars(*form, f, w, raw);
        } else if (form) {
            round_groups(*form, f, w, raw);
        } else { // as ggml rounded it; the blocks behind make it good
            ggml_get_type_traits(kind)->to_float(raw, whole.data(), n);
            for (uint32_t i = 0; i < n; i++) settle(f, w, i, whole[i]);
        }
    }
}

} // namespace emoe
