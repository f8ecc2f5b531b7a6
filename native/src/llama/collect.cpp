#include "llama/collect.h"

#include "base/error.h"
#include "llama/residual.h"

#include <algorithm>
#include <cmath>

namespace emoe {

namespace {

// +1 or -1, from a mixture of the position's bits: the same noise in every run.
float sign(uint64_t token, uint32_t expert, uint32_t row) {
    uint64_t x = token * 0x9e3779b97f4a7c15ULL + expert * 0xbf58476d1ce4e5b9ULL + row * 0x94d049bb133111ebULL;
    x ^= x >> 31;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebULL;
    return (x >> 40 & 1) != 0 ? 1.0F : -1.0F;
}

uint32_t down_of(const ExpertLayer &layer) {
    for (uint32_t m = 0; m < layer.matrices.size(); m++)
        if (layer.matrices[m].role == "down") return m;
    fail(EMOE_ERR_UNSUPPORTED, "layer %u has no down matrix", layer.layer);
}

const float *activation_row(const ggml_tensor *a, Row row) {
    return reinterpret_cast<const float *>(static_cast<const char *>(a->data) +
                                           static_cast<size_t>(row.rank % a->ne[1]) * a->nb[1] +
                                           size_t{row.token} * a->nb[2]);
}

} // namespace

uint64_t Collector::bytes(const Layout &layout, uint32_t n_sample) {
    uint64_t n = 0;
    for (ExpertLayer const &l : layout.layers) {
        Matrix const &first = l.matrices.front();
        Matrix const &down = l.matrices[down_of(l)];
        n += uint64_t{l.n_expert} * (uint64_t{first.n_col} + down.n_col + down.n_row) * sizeof(float);
        n += l.n_expert * sizeof(Scalars) + uint64_t{n_sample} * (uint64_t{first.n_col} + l.n_expert) * sizeof(float);
    }
    return n;
}

Collector::Collector(const Layout &layout, uint32_t n_sample, uint32_t sample_stride)
    : n_sample_(n_sample), sample_stride_(std::max(1u, sample_stride)), layers_(layout.layers.size()) {
    for (size_t i = 0; i < layers_.size(); i++) {
        ExpertLayer const &from = layout.layers[i];
        Layer &l = layers_[i];
        n_expert_.push_back(from.n_expert);
        down_.push_back(down_of(from));
        l.n_in = from.matrices.front().n_col;
        l.n_hidden = from.matrices[down_.back()].n_col;
        l.n_out = from.matrices[down_.back()].n_row;
        l.experts.resize(from.n_expert);
        uint32_t const columns[2] = {l.n_in, l.n_hidden};
        for (int side = 0; side < 2; side++) l.moments[side].resize(size_t{from.n_expert} * columns[side]);
        l.mean.resize(size_t{from.n_expert} * l.n_out);
        l.sample_x.resize(size_t{n_sample} * l.n_in);
        l.sample_w.resize(size_t{n_sample} * from.n_expert);
    }
}

float Collector::router_weight(const Layer &layer, Row row) {
    ggml_tensor const *w = layer.router;
    if (!w) return 1.0F;
    return *reinterpret_cast<const float *>(static_cast<const char *>(w->data) + row.rank * w->nb[1] +
                                            row.token * w->nb[2]);
}

void Collector::begin_layer(uint32_t layer, const ggml_tensor *activations, const Routing &routing) {
    Layer &l = layers_[layer];
    ggml_tensor const *residual = residual_of(activations, routing.n_token);
    l.residual = residual != nullptr;
    l.scale.resize(routing.n_token);
    for (uint32_t t = 0; t < routing.n_token; t++)
        l.scale[t] = static_cast<float>(std::sqrt(inverse_square(residual, t)));
    for (uint32_t t = 0; t < routing.n_token; t++) {
        if ((l.n_seen + t) % sample_stride_ != 0 || l.n_sample == n_sample_) continue;
        std::copy_n(activation_row(activations, Row{t, 0}), l.n_in, &l.sample_x[size_t{l.n_sample} * l.n_in]);
        float *w = &l.sample_w[size_t{l.n_sample} * n_expert_[layer]];
        for (uint32_t r = 0; r < routing.n_rank; r++) w[routing.at(t, r)] = importance(l, Row{t, r});
        l.n_sample++;
    }
    l.n_seen += routing.n_token;
}

void Collector::input(uint32_t layer, uint32_t matrix, const ggml_tensor *activations, uint32_t expert, const Row *rows,
                      uint32_t n_row, uint32_t chunk, uint32_t n_chunk) {
    bool const down = is_down(layer, matrix);
    if (!down && matrix != 0) return; // gate meets what up met
    Layer &l = layers_[layer];
    uint32_t const n_col = down ? l.n_hidden : l.n_in;
    auto const begin = static_cast<uint32_t>(uint64_t{n_col} * chunk / n_chunk);
    auto const end = static_cast<uint32_t>(uint64_t{n_col} * (chunk + 1) / n_chunk);
    float *moments = &l.moments[down ? 1 : 0][size_t{expert} * n_col];
    Scalars s;
    for (uint32_t j = 0; j < n_row; j++) {
        const float *x = activation_row(activations, rows[j]);
        float const w = importance(l, rows[j]);
        for (uint32_t i = begin; i < end; i++) moments[i] += w * w * x[i] * x[i];
        s.n_token += 1;
        s.weight += double{router_weight(l, rows[j])};
        s.weight2 += double{w} * double{w};
    }
    if (down || chunk != 0) return;
    std::lock_guard<std::mutex> const lock(mutex_);
    Scalars &to = l.experts[expert];
    to.n_token += s.n_token;
    to.weight += s.weight;
    to.weight2 += s.weight2;
}

void Collector::output(uint32_t layer, uint32_t matrix, const ggml_tensor *out, uint32_t expert, const Row *rows,
                       uint32_t n_row, uint32_t begin, uint32_t end) {
    if (!is_down(layer, matrix)) return;
    Layer &l = layers_[layer];
    float *mean = &l.mean[size_t{expert} * l.n_out];
    float const share = layer == noise_layer_ && !spared_[expert] ? noise_share_ : 0.0F;
    double output2 = 0;
    double noise2 = 0;
    float largest = 0;
    for (uint32_t j = 0; j < n_row; j++) {
        auto *y = reinterpret_cast<float *>(static_cast<char *>(out->data) + rows[j].rank * out->nb[1] +
                                            rows[j].token * out->nb[2]);
        double square = 0;
        for (uint32_t i = begin; i < end; i++) {
            mean[i] += y[i];
            largest = std::max(largest, std::fabs(y[i]));
            square += double{y[i]} * double{y[i]};
        }
        double const w = double{importance(l, rows[j])};
        output2 += w * w * square;
        if (share == 0.0F) continue;
        auto const size = share * static_cast<float>(std::sqrt(square / (end - begin)));
        uint64_t const token = l.n_seen + rows[j].token;
        for (uint32_t i = begin; i < end; i++) y[i] += size * sign(token, expert, i);
        noise2 += w * w * double{size} * double{size} * (end - begin);
    }
    std::lock_guard<std::mutex> const lock(mutex_);
    Scalars &to = l.experts[expert];
    to.output2 += output2;
    to.largest = std::max(to.largest, double{largest});
    l.noise2 += noise2;
}

void Collector::set_noise(uint32_t layer, float share, const uint8_t *spared, uint64_t n) {
    if (layer < layers_.size() && n != 0 && n != n_expert_[layer])
        fail(EMOE_ERR_ARGUMENT, "%zu experts to spare where there are %u", size_t(n), n_expert_[layer]);
    noise_layer_ = layer;
    noise_share_ = share;
    spared_.assign(layer < layers_.size() ? n_expert_[layer] : 0, false);
    for (uint64_t i = 0; i < n && i < spared_.size(); i++) spared_[i] = spared[i] != 0;
    for (Layer &l : layers_) l.noise2 = 0;
}

void Collector::read(uint32_t layer, uint32_t kind, float *out, uint64_t n) const {
    if (layer >= layers_.size()) fail(EMOE_ERR_ARGUMENT, "there is no layer %u", layer);
    Layer const &l = layers_[layer];
    auto const copy = [&](const std::vector<float> &from) {
        if (n != from.size()) fail(EMOE_ERR_ARGUMENT, "room for %zu values where %zu are", size_t(n), from.size());
        std::copy(from.begin(), from.end(), out);
    };
    std::lock_guard<std::mutex> const lock(mutex_);
    switch (kind) {
    case EMOE_COLLECT_EXPERTS: {
        std::vector<float> values;
        for (Scalars const &s : l.experts)
            for (double const v : {s.n_token, s.weight, s.weight2, s.output2, s.largest})
                values.push_back(static_cast<float>(v));
        return copy(values);
    }
    case EMOE_COLLECT_IN: return copy(l.moments[0]);
    case EMOE_COLLECT_HIDDEN: return copy(l.moments[1]);
    case EMOE_COLLECT_OUTPUT: return copy(l.mean);
    case EMOE_COLLECT_SAMPLE_X: return copy(l.sample_x);
    case EMOE_COLLECT_SAMPLE_W: return copy(l.sample_w);
    case EMOE_COLLECT_STATE:
        return copy({static_cast<float>(l.n_sample), static_cast<float>(l.n_seen), static_cast<float>(l.noise2),
                     l.router ? 1.0F : 0.0F, l.residual ? 1.0F : 0.0F});
    default: fail(EMOE_ERR_ARGUMENT, "nothing of kind %u is collected", kind);
    }
}

} // namespace emoe
