// How fast a model will decode, reckoned.
#include "budget/predict.h"

#include "check.h"

#include <algorithm>
#include <cmath>

using namespace emoe;

static bool near(double a, double b) { return std::fabs(a - b) < 1e-9 * std::max(1.0, std::fabs(b)); }

static emoe_model_info model() {
    emoe_model_info m = {};
    m.dense_token_bytes = 600 << 20;
    m.token_bytes = 400 << 20;
    return m;
}

static emoe_speeds speeds(double disk, double compute, double hit_rate = -1) {
    emoe_speeds s = {};
    s.disk_bytes_per_s = disk;
    s.compute_bytes_per_s = compute;
    s.hit_rate = hit_rate;
    return s;
}

static void hits_rise_with_what_fits_from_none_to_all() {
    CHECK(near(hit_rate(0), 0));
    CHECK(near(hit_rate(1), 1));
    for (int i = 0; i < 100; i++) CHECK(hit_rate(i / 100.0) < hit_rate((i + 1) / 100.0));
    CHECK(hit_rate(0.32) > 0.32); // routing has locality: that is what the cache lives on
}

static void a_fraction_that_is_none_has_hits_between_none_and_all() {
    CHECK(near(hit_rate(-3), 0));
    CHECK(near(hit_rate(7), 1));
    CHECK(hit_rate(std::nan("")) >= 0 && hit_rate(std::nan("")) <= 1);
}

static void with_every_expert_at_hand_the_processor_decides() {
    emoe_prediction const p = predict(model(), 1, speeds(1e9, 10e9));
    CHECK_EQ(p.disk_bound, 0u);
    CHECK_EQ(p.low_miss_bytes, 0u);
    CHECK_EQ(p.high_miss_bytes, 0u);
    CHECK(near(p.low_tok_s, p.high_tok_s));
    CHECK(near(p.high_tok_s, 10e9 * 0.5 / static_cast<double>(1000 << 20))); // half of the time is the kernels'
}

static void on_a_slow_drive_the_drive_decides() {
    emoe_prediction const p = predict(model(), 0.2, speeds(50e6, 10e9));
    CHECK_EQ(p.disk_bound, 1u);
    CHECK(p.low_tok_s < p.high_tok_s);
    CHECK(p.low_miss_bytes > p.high_miss_bytes);
    CHECK_EQ(p.low_miss_bytes, static_cast<uint64_t>(0.8 * (400 << 20)));
    // A faster drive is never slower.
    CHECK(predict(model(), 0.2, speeds(100e6, 10e9)).low_tok_s > p.low_tok_s);
}

static void a_measured_hit_rate_counts_more_than_the_curve() {
    emoe_prediction const p = predict(model(), 0.2, speeds(50e6, 10e9, 0.9));
    CHECK(near(p.hit_rate, 0.9));
    CHECK_EQ(p.high_miss_bytes, static_cast<uint64_t>((1 - 0.9) * (400 << 20)));
    CHECK(near(predict(model(), 0.2, speeds(50e6, 10e9, 5)).hit_rate, 1));
    // Worse than chance: then the low end is no better either.
    emoe_prediction const bad = predict(model(), 0.8, speeds(50e6, 10e9, 0.1));
    CHECK_EQ(bad.low_miss_bytes, bad.high_miss_bytes);
}

int main() {
    hits_rise_with_what_fits_from_none_to_all();
    a_fraction_that_is_none_has_hits_between_none_and_all();
    with_every_expert_at_hand_the_processor_decides();
    on_a_slow_drive_the_drive_decides();
    a_measured_hit_rate_counts_more_than_the_curve();
    return g_failures;
}
