#include "pipeline/price.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace emoe {

namespace {

// The limit rises by at most this share a token. It settles in about 1 / (2 * k_step) tokens, since what is spent grows
// faster than the limit; a larger step would follow single tokens.
constexpr double k_step = 0.02;
// Times the mean that one token may spend: a change of topic, when all is missing at once, is not paid with nonsense.
constexpr double k_token_share = 6;
// The limit begins at this share of what the calibration found and never falls below the next: the first tokens, when
// nothing is in memory yet, are not the worst.
constexpr double k_begin = 0.25, k_floor = 1e-4;
// Times the limit that the calibration found for the price, with half of the experts in memory.
constexpr double k_ceiling = 2;
constexpr double k_memory = 200; // tokens

bool ascends(const std::vector<double> &values) {
    for (size_t i = 0; i < values.size(); i++)
        if (!(std::isfinite(values[i]) && values[i] > (i == 0 ? 0 : values[i - 1]))) return false;
    return true;
}

// y at x on the line through the points in logarithms; beyond them the nearest segment goes on.
double along(const std::vector<double> &xs, const std::vector<double> &ys, double x) {
    auto const above = static_cast<size_t>(std::upper_bound(xs.begin(), xs.end(), x) - xs.begin());
    size_t const i = std::clamp<size_t>(above, 1, xs.size() - 1);
    double const slope = std::log(ys[i] / ys[i - 1]) / std::log(xs[i] / xs[i - 1]);
    return ys[i - 1] * std::pow(x / xs[i - 1], slope);
}

} // namespace

std::string price_problem(const Prices &prices, size_t n_expert) {
    if (prices.cost.size() != n_expert)
        return "it is of " + std::to_string(prices.cost.size()) + " experts, the model has " + std::to_string(n_expert);
    for (float const c : prices.cost)
        if (!(c >= 0)) return "an expert costs " + std::to_string(c) + " nats";
    size_t const n = prices.nats.size();
    if (n < 2 || prices.limit.size() != n || prices.raw.size() != n) return "it has no table of what skipping costs";
    if (!ascends(prices.limit) || !ascends(prices.raw) || !ascends(prices.nats))
        return "what it measured does not grow with what was skipped";
    return "";
}

PriceController::PriceController(Prices prices, double nats)
    : prices_(std::move(prices)), price_(nats), target_(along(prices_.nats, prices_.raw, nats)),
      ceiling_(k_ceiling * along(prices_.nats, prices_.limit, nats)), limit_(ceiling_ * k_begin) {}

bool PriceController::pays(double cost, double size) {
    if (!(cost < limit_ * size) || token_ + cost > k_token_share * target_) return false;
    token_ += cost;
    return true;
}

void PriceController::end_token() {
    limit_ = std::clamp(limit_ * std::exp(k_step * (1 - token_ / target_)), ceiling_ * k_floor, ceiling_);
    sum_ += token_ - sum_ / k_memory;
    weight_ += 1 - weight_ / k_memory;
    token_ = 0;
}

double PriceController::spent() const {
    double const mean = weight_ == 0 ? 0 : sum_ / weight_;
    return mean <= 0 ? 0 : along(prices_.raw, prices_.nats, mean);
}

} // namespace emoe
