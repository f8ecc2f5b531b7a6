// LOSSY: which missing experts a visit leaves out. Streamer asks, PriceController decides by what they cost.
//
// Of each token the expert with the largest weight is always computed. What is left out is no use for the policy:
// otherwise the cache would fill with what is never needed. And as long as a slot is free, what is missing is read:
// where all fits nothing is ever left out, from the first token on.
#include "pipeline/streamer.h"

namespace emoe {

namespace {

uint32_t heaviest(const float *weights, uint32_t n_rank) {
    uint32_t best = 0;
    for (uint32_t k = 1; k < n_rank; k++)
        if (weights[k] > weights[best]) best = k;
    return best;
}

} // namespace

// By token and rank 1 for what is left out, nullptr for nothing.
const uint8_t *Streamer::choose_skips(const Routing &routing) {
    bool const in_decode = price_ && n_batch_token_ == 1;
    if ((!in_decode && !trial_) || !routing.weights || !routing.inverse_square) return nullptr;
    bool any = false;
    skip_.assign(size_t{routing.n_token} * routing.n_rank, 0);
    for (uint32_t t = 0; t < routing.n_token; t++) {
        const float *weights = routing.weights + size_t{t} * routing.n_rank;
        uint32_t const best = heaviest(weights, routing.n_rank);
        for (uint32_t k = 0; k < routing.n_rank; k++) {
            auto const e = static_cast<uint32_t>(routing.at(t, k));
            if (k == best || e >= spec_->n_expert || on_gpu(spec_->first + e)) continue;
            ExpertIndex const expert = spec_->first + e;
            double const size = static_cast<double>(expert_bytes(expert)) / mean_bytes_;
            SlotId id;
            if (trial_) {
                double const cost = use_cost(trial_->cost[expert], weights[k], routing.inverse_square[t]);
                if (trial_->missing[expert] == 0 || !(cost < trial_->limit * size)) continue;
                trial_->spent += cost;
            } else if (cache_->find(expert, &id) || cache_->has_free(cache_->class_of(expert)) ||
                       !price_->pays(price_->cost(expert, weights[k], routing.inverse_square[t]), size)) {
                continue;
            }
            skip_[size_t{t} * routing.n_rank + k] = 1;
            any = true;
        }
    }
    return any ? skip_.data() : nullptr;
}

uint64_t Streamer::expert_bytes(ExpertIndex expert) const {
    ExpertLayer const &layer = layout_.layers[layer_of_[expert]];
    Place const &place = layer.places[expert - layer.first];
    uint64_t n = 0;
    for (uint32_t i = 0; i < place.n_piece; i++) n += layer.pieces[place.first_piece + i].bytes;
    return n;
}

void Streamer::count_skips(const Routing &routing) {
    for (Row const &row : groups_.skipped) {
        ExpertIndex const expert = spec_->first + static_cast<uint32_t>(routing.at(row.token, row.rank));
        stats_.n_skip++;
        stats_.skip_bytes += expert_bytes(expert);
        states_[expert] |= k_state_skipped;
    }
}

} // namespace emoe
