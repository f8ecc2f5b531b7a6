// LOSSY: what leaving out experts may cost, and the controller that spends at most that. Pure: costs in, decisions out.
//
// Leaving out a use of an expert changes the layer's output by w * output. What that costs is estimated as
//
//     cost(expert) * w^2 / (mean square of the residual stream)        raw nats
//
// with cost = sensitivity of the layer * mean |output|^2 of the expert, from a calibration. Raw nats add up badly: small
// changes cost more than their sum says, since they flip routings behind them. So the calibration measured, at a few
// limits, both the sum and the divergence that came of it, and the price named in nats becomes a sum to spend a token.
//
// Each token may leave out what costs less than a limit. The limit follows what was spent: a token that spends the mean
// leaves it, one that spends nothing raises it by k_step. Summed up, log(limit) is the account of what is left, so that
// the mean is the price as long as the limit is between its bounds. Its upper bound makes memory cheaper: where little
// is missing, experts that matter are not left out only because there is something left to spend.
#pragma once

#include "cache/policy.h"

#include <cstddef>
#include <string>
#include <vector>

namespace emoe {

// Nats a token. Below it what is measured is mostly routings that flipped: nothing to be priced.
constexpr double k_least_price = EMOE_LEAST_LOSSY, k_most_price = 1;

// Of a model, by its calibration.
struct Prices {
    std::vector<float> cost; // by ExpertIndex: raw nats for w = 1 and a mean square of 1; infinity: never left out
    // Measured with half of each layer's experts in memory, ascending: limit of a use's cost, raw nats a token spent at
    // it, divergence in nats a token.
    std::vector<double> limit, raw, nats;
};

// Why the numbers cannot be used, empty when they can.
std::string price_problem(const Prices &prices, size_t n_expert);

// Raw nats of one use. cost: of the expert; weight: of the router; inverse_square: 1 / mean square of the residual
// stream.
inline double use_cost(float cost, float weight, float inverse_square) {
    return double{cost} * double{weight} * double{weight} * double{inverse_square};
}

class PriceController {
public:
    // nats: the price, a token.
    PriceController(Prices prices, double nats);

    double cost(ExpertIndex expert, float weight, float inverse_square) const {
        return use_cost(prices_.cost[expert], weight, inverse_square);
    }
    void begin_token() { token_ = 0; }
    // May a missing use of this cost be left out? Then it is paid for. size: of the expert in bytes, over the model's mean.
    bool pays(double cost, double size);
    // The token is computed.
    void end_token();

    double price() const { return price_; }
    // Divergence in nats a token, over about the last k_memory tokens, as far as the calibration can tell.
    double spent() const;
    double limit() const { return limit_; }

private:
    Prices prices_;
    double price_;   // nats a token
    double target_;  // raw nats a token
    double ceiling_; // of the limit
    double limit_;
    double token_ = 0;            // spent on the token under way
    double sum_ = 0, weight_ = 0; // of the last tokens, fading
};

} // namespace emoe
