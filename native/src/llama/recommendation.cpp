#include "llama/recommendation.h"

#include <llama.h>

#include <cmath>
#include <cstdlib>

namespace emoe {

namespace {

constexpr float k_most = 1e6f;

// Reads the fields one after another, in the struct's order: that is what `given` counts.
class Reader {
public:
    explicit Reader(const ModelIndex *index) : index_(index) {}

    float number(llama_model_meta_key key, float otherwise, float low, float high) {
        std::string const text = next(key);
        char *end = nullptr;
        float const value = std::strtof(text.c_str(), &end);
        if (end == text.c_str() || !(value >= low && value <= high)) return otherwise;
        given_ |= bit_;
        return value;
    }

    int32_t whole(llama_model_meta_key key, int32_t otherwise, int32_t low, int32_t high) {
        return static_cast<int32_t>(
            std::lround(number(key, static_cast<float>(otherwise), static_cast<float>(low), static_cast<float>(high))));
    }

    std::string text(llama_model_meta_key key, size_t cap) {
        std::string const text = next(key);
        if (text.empty() || text.size() >= cap) return "";
        given_ |= bit_;
        return text;
    }

    uint32_t given() const { return given_; }

private:
    std::string next(llama_model_meta_key key) {
        bit_ = bit_ == 0 ? 1 : bit_ << 1;
        std::string text;
        if (index_) (void)meta_text(index_->meta.get(), llama_model_meta_key_str(key), &text);
        return text;
    }

    ModelIndex const *index_;
    uint32_t bit_ = 0, given_ = 0;
};

} // namespace

emoe_recommendation recommendation(const ModelIndex *index) {
    constexpr float k_least = 1e-6f; // what must not be 0
    constexpr int32_t k_tokens = 1 << 20;
    Reader read(index);
    emoe_recommendation r = {};
    r.struct_size = sizeof r;
    r.temp = read.number(LLAMA_MODEL_META_KEY_SAMPLING_TEMP, 0.8f, 0, k_most);
    r.top_p = read.number(LLAMA_MODEL_META_KEY_SAMPLING_TOP_P, 0.95f, k_least, 1);
    r.min_p = read.number(LLAMA_MODEL_META_KEY_SAMPLING_MIN_P, 0.05f, 0, 1);
    r.xtc_probability = read.number(LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY, 0, 0, 1);
    r.xtc_threshold = read.number(LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD, 0.1f, 0, 1);
    r.repeat_penalty = read.number(LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT, 1, k_least, k_most);
    r.mirostat_tau = read.number(LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU, 5, 0, k_most);
    r.mirostat_eta = read.number(LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA, 0.1f, 0, k_most);
    r.top_k = read.whole(LLAMA_MODEL_META_KEY_SAMPLING_TOP_K, 40, 0, k_tokens);
    r.repeat_last_n = read.whole(LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N, 64, 0, k_tokens);
    r.mirostat = static_cast<uint32_t>(read.whole(LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT, 0, 0, 2));
    std::string const sequence = read.text(LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE, sizeof r.sequence);
    sequence.copy(r.sequence, sizeof r.sequence - 1);
    r.given = read.given();
    return r;
}

} // namespace emoe
