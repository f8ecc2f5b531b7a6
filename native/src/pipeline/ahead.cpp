// Reading ahead: what Streamer wishes for of the next layers at each visit, and when a wish may become a read.
#include "pipeline/streamer.h"

#include <algorithm>
#include <cmath>

namespace emoe {

namespace {

// Of the slots, at most this part holds experts that were read ahead and not yet used: guesses shall not displace
// what has proved useful.
constexpr uint32_t k_region_decode = 4, k_region_batch = 2;
// An expert in the cache that will be used with this probability by one of the next layers is given up last.
constexpr float k_expect = 0.3f;
// A few tokens at once, as when drafts are verified, take about a token's experts, of which habit knows too little.
constexpr uint32_t k_least_batch = 8;
// In a batch, an expert that some token will use with this probability is read ahead.
constexpr double k_batch_probability = 0.9;
// Of what nobody has asked for, wished for at a visit: more are read only where layers take long.
constexpr size_t k_rest_wishes = 16;
// Bytes read ahead at once at most, or two reads: enough to keep a drive at work, little to wait for.
constexpr uint64_t k_ahead_bytes = 1 << 20;

} // namespace

bool Streamer::wants_router(uint32_t layer) const { return predictor_ && !predictor_->has_router(layer); }

void Streamer::set_router(uint32_t layer, const float *rows, const float *norm) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (predictor_) predictor_->set_router(layer, rows, norm);
}

Accuracy Streamer::accuracy(uint32_t layer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return predictor_ && layer < layout_.layers.size() ? predictor_->accuracy(layer) : Accuracy{};
}

void Streamer::drop_wishes() {
    for (ExpertIndex e : wishes_) wished_[e] = 0;
    wishes_.clear();
}

// The visit's layer has come: guesses for it were right or wrong. Wrong ones that are complete stay like any other
// expert, under the policy; what is half read is freed.
void Streamer::settle_ahead(uint32_t n_token) {
    if (predictor_ && n_token == 1) predictor_->learn(layer_, uses_.data(), uses_.size());
    auto const mine = [this](ExpertIndex e) {
        if (layer_of_[e] != layer_) return false;
        SlotId id;
        if (!cache_->find(e, &id) || !cache_->at(id).speculative) return true;
        cache_->set_speculative(id, false);
        states_[e] |= k_state_prefetched;
        if (cache_->at(id).ready != spec_->all_matrices() && !cache_->holds_all()) cache_->abandon(id);
        return true;
    };
    ahead_.erase(std::remove_if(ahead_.begin(), ahead_.end(), mine), ahead_.end());
}

void Streamer::wish_ahead(const Routing &routing) {
    // A smaller cache is waited for: slots that are being filled would hold it up.
    if (!reads_ahead_ || wanted_bytes_ != 0 || !passage_.empty()) return;
    auto const n_layer = static_cast<uint32_t>(layout_.layers.size());
    if (routing.n_token > 1) {
        if (layer_ + 1 < n_layer && routing.n_token >= k_least_batch) wish_for_batch(layer_ + 1, routing.n_token);
        return;
    }
    uint32_t const depth = governor_.depth();
    if (predictor_ && predictor_->has_router(layer_) && routing.input) predictor_->set_input(layer_, routing.input);
    for (uint32_t d = 1; d <= depth; d++) {
        if (layer_ + d < n_layer) {
            if (const float *p = predictor_ && routing.input ? predictor_->guess(layer_, d) : nullptr)
                wish_for_layer(layer_ + d, d, p);
        } else if (layer_ + d - n_layer < n_layer) {
            // The next token's first layers: only habit tells.
            ExpertLayer const &next = layout_.layers[layer_ + d - n_layer];
            habit_.resize(next.n_expert);
            for (uint32_t e = 0; e < next.n_expert; e++)
                habit_[e] = static_cast<float>(cache_->policy().probability(next.first + e));
            wish_for_layer(layer_ + d - n_layer, d, habit_.data());
        }
    }
}

// p: probability of use, by expert of the layer, which comes in d visits.
void Streamer::wish_for_layer(uint32_t layer, uint32_t d, const float *p) {
    ExpertLayer const &spec = layout_.layers[layer];
    float const threshold = governor_.threshold();
    likely_.clear();
    for (uint32_t e = 0; e < spec.n_expert; e++) {
        ExpertIndex const expert = spec.first + e;
        if (p[e] < std::min(k_expect, threshold) || on_gpu(expert)) continue;
        if (p[e] >= k_expect) cache_->expect(expert, d + 1);
        if (p[e] >= threshold && !is_asked(expert)) likely_.emplace_back(p[e], expert);
    }
    add_wishes(cache_->n_slot() / k_region_decode);
}

void Streamer::wish_for_batch(uint32_t layer, uint32_t n_token) {
    ExpertLayer const &spec = layout_.layers[layer];
    likely_.clear();
    for (uint32_t e = 0; e < spec.n_expert; e++) {
        double const rate = cache_->policy().probability(spec.first + e);
        double const p = 1 - std::pow(1 - std::min(1.0, rate), n_token);
        if (p < k_batch_probability || on_gpu(spec.first + e)) continue;
        cache_->expect(spec.first + e, 2);
        if (!is_asked(spec.first + e)) likely_.emplace_back(static_cast<float>(rate), spec.first + e);
    }
    add_wishes(cache_->n_slot() / k_region_batch);
}

bool Streamer::is_asked(ExpertIndex expert) const {
    SlotId id;
    return cache_->find(expert, &id) && cache_->at(id).asked == layout_.layers[layer_of_[expert]].all_matrices();
}

// Where every expert has a slot, those that nobody has asked for yet come last: they displace nothing, and a layer that is
// whole is llama.cpp's.
void Streamer::wish_for_rest() {
    if (!reads_rest_ || wanted_bytes_ != 0 || !on_gpu_.empty() || !cache_->holds_all()) return;
    while (rest_ < layout_.n_expert_total && is_asked(rest_)) rest_++;
    for (ExpertIndex e = rest_; e < layout_.n_expert_total && wishes_.size() < k_rest_wishes; e++) {
        if (wished_[e] || is_asked(e)) continue;
        wished_[e] = 1;
        wishes_.push_back(e);
    }
}

void Streamer::add_wishes(uint32_t region) {
    std::sort(likely_.begin(), likely_.end(), [](auto const &a, auto const &b) { return a.first > b.first; });
    for (auto const &[p, expert] : likely_) {
        if (wishes_.size() + ahead_.size() >= region) return;
        if (wished_[expert]) continue;
        wishes_.push_back(expert);
        wished_[expert] = 1;
    }
}

void Streamer::pump() {
    while (!wishes_.empty() && !failed_.load(std::memory_order_relaxed)) {
        ExpertIndex const e = wishes_.front();
        ExpertLayer const &layer = layout_.layers[layer_of_[e]];
        uint64_t const bytes = layer.pieces[layer.places[e - layer.first].first_piece].bytes;
        uint64_t const at_once = std::clamp<uint64_t>(k_ahead_bytes / bytes, 2, std::max(2u, n_lane_));
        if (n_in_flight_ >= at_once) return;
        SlotId id;
        bool const begun = cache_->find(e, &id);
        if (!begun) {
            id = cache_->take_for(e, true);
            if (!id.none()) {
                cache_->set_speculative(id, true);
                stats_.n_prefetch++;
                ahead_.push_back(e);
            }
        }
        if (!id.none()) {
            ask_pieces(id, e, layer.all_matrices(), true);
            if (!begun) cache_->unpin(id);       // reads under way keep it
            if (!submit()) return drop_wishes(); // asked again, it would be refused again
            if (cache_->at(id).asked != layer.all_matrices()) continue;
        }
        wished_[e] = 0;
        wishes_.pop_front();
    }
}

} // namespace emoe
