#include "budget/predict.h"

#include <algorithm>
#include <iterator>

namespace emoe {

namespace {

struct Point {
    double fraction, hits;
};
// Of the default policy (next-use), by replay: docs/experiments/hit-curve.md.
constexpr Point k_hits[] = {{0, 0},       {0.01, 0.01}, {0.11, 0.34}, {0.21, 0.55},
                            {0.33, 0.71}, {0.52, 0.88}, {0.76, 0.98}, {1, 1}};
// Of the time that a token takes with every expert at hand, the part spent in the measured kernels: the rest is
// attention, norms and waiting at barriers (SmolMoE inflated to 2.8 GB, 2 threads).
constexpr double k_kernel_share = 0.5;
// Compute and reading overlap, but not wholly: this share of the shorter of the two adds to the longer.
constexpr double k_overlap_loss_low = 0.5, k_overlap_loss_high = 0.15;

struct Case {
    double tok_s;
    uint64_t miss_bytes;
    bool disk_bound;
};

Case reckon(double token_bytes, double hits, double compute_s, double disk_bytes_per_s, double overlap_loss) {
    double const missed = token_bytes * (1 - hits), disk_s = missed / disk_bytes_per_s;
    double const token_s = std::max(compute_s, disk_s) + overlap_loss * std::min(compute_s, disk_s);
    return {1 / token_s, static_cast<uint64_t>(missed), disk_s > compute_s};
}

} // namespace

double hit_rate(double fraction) {
    if (!(fraction > 0)) return 0;
    for (size_t i = 1; i < std::size(k_hits); i++) {
        Point const &a = k_hits[i - 1], &b = k_hits[i];
        if (fraction <= b.fraction)
            return a.hits + (b.hits - a.hits) * (fraction - a.fraction) / (b.fraction - a.fraction);
    }
    return 1;
}

emoe_prediction predict(const emoe_model_info &model, double fraction, const emoe_speeds &speeds) {
    double const work = static_cast<double>(model.dense_token_bytes + model.token_bytes);
    double const compute_s = work / speeds.compute_bytes_per_s / k_kernel_share;
    auto const token_bytes = static_cast<double>(model.token_bytes);
    double const hits = speeds.hit_rate >= 0 ? std::min(1.0, speeds.hit_rate) : hit_rate(fraction);
    Case const low =
        reckon(token_bytes, std::min(fraction, hits), compute_s, speeds.disk_bytes_per_s, k_overlap_loss_low);
    Case const high = reckon(token_bytes, hits, compute_s, speeds.disk_bytes_per_s, k_overlap_loss_high);
    emoe_prediction p = {};
    p.disk_bound = low.disk_bound ? 1 : 0;
    p.low_tok_s = low.tok_s;
    p.high_tok_s = high.tok_s;
    p.low_miss_bytes = low.miss_bytes;
    p.high_miss_bytes = high.miss_bytes;
    p.hit_rate = hits;
    return p;
}

} // namespace emoe
