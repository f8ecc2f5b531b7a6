#include "pipeline/governor.h"

#include "pipeline/predictor.h"

#include <algorithm>
#include <cmath>

namespace emoe {

namespace {
// Every so many tokens one is computed the other way: often at first, then seldom.
constexpr uint64_t k_early = 128, k_probe_early = 8, k_probe_late = 24;
constexpr uint32_t k_least = 12;     // tokens of each kind before anything is concluded
constexpr double k_worth = 0.03;     // of a token's time: reading more must gain at least that
constexpr double k_more_bytes = 1.1; // times what is read without: less is no cost
constexpr float k_threshold_idle = 0.4f, k_threshold_busy = 0.5f;
} // namespace

double Governor::Side::mean(const float (&values)[k_size]) const {
    double sum = 0;
    for (uint32_t i = 0; i < size(); i++) sum += values[i];
    return size() == 0 ? 0 : sum / size();
}

double Governor::Side::error() const {
    uint32_t const m = size();
    if (m < 2) return 1e18;
    double const center = mean(ns);
    double squares = 0;
    for (uint32_t i = 0; i < m; i++) squares += (ns[i] - center) * (ns[i] - center);
    return std::sqrt(squares / (m - 1) / m);
}

bool Governor::begin_token() {
    n_token_++;
    if (mode_ != PrefetchMode::automatic) return reads_ahead_ = mode_ == PrefetchMode::on;
    uint64_t const every = n_token_ <= k_early ? k_probe_early : k_probe_late;
    bool const probe = n_token_ % every == 0;
    reads_ahead_ = paused_ ? probe : !probe;
    return reads_ahead_;
}

void Governor::end_token(uint64_t took_ns, uint64_t drive_ns, uint64_t read_bytes) {
    if (took_ns == 0) return;
    double const busy = std::min(1.0, static_cast<double>(drive_ns) / static_cast<double>(took_ns));
    if (reads_ahead_) {
        busy_ += 0.1 * (busy - busy_);
        double const strain = std::clamp((busy_ - 0.5) / 0.45, 0.0, 1.0);
        threshold_ = static_cast<float>(k_threshold_idle + strain * (k_threshold_busy - k_threshold_idle));
    }
    (reads_ahead_ ? with_ : without_).add(static_cast<double>(took_ns), static_cast<double>(read_bytes));
    if (mode_ == PrefetchMode::automatic) compare();
}

void Governor::compare() {
    if (with_.size() < k_least || without_.size() < k_least) return;
    double const difference = with_ns() - without_ns(); // positive: reading ahead is slower
    double const error = std::hypot(with_.error(), without_.error());
    // Where it reads no more than needed, it goes on until it is found slower; else until it is found not to gain.
    double const worth = with_bytes() > k_more_bytes * without_bytes() ? k_worth * without_ns() : 0;
    if (!paused_ && (difference > 2 * error || (worth > 0 && difference > error - worth))) paused_ = true;
    if (paused_ && difference < -error - worth) paused_ = false;
}

void Governor::at_layer(uint32_t n_left, bool drive_idle) {
    // Deeper while the drive runs dry before the next layer comes, less deep while wishes are left over.
    if (n_left > 2)
        want_depth_ -= 0.05;
    else if (drive_idle)
        want_depth_ += 0.05;
    want_depth_ = std::clamp(want_depth_, 1.0, static_cast<double>(k_max_depth));
    depth_ = static_cast<uint32_t>(want_depth_ + 0.5);
}

} // namespace emoe
