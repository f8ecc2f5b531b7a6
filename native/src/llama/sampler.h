// The choice of the next token: llama.cpp's samplers in llama.cpp's order, and its grammars.
#pragma once

#include "llama/owned.h"
#include "llama/text.h"

#include <edgemoe.h>

#include <llama.h>

#include <string>
#include <vector>

namespace emoe {

class Sampler {
public:
    explicit Sampler(const emoe_sampler_params &params);
    void constrain(const TextModel &model, const emoe_constraint &constraint); // before the first sample
    int32_t sample(const TextModel &model, uint32_t i); // -1: no such row, -2: nothing is allowed

private:
    void build(uint32_t n_vocab); // at the first use: the penalties want the size of the vocabulary
    void add_in_order(int32_t n_vocab, uint32_t seed);
    LlamaSamplerPtr dry(const TextModel &model, const emoe_constraint &c) const;
    int32_t pick(const float *logits, bool obey);
    bool allows(int32_t token);
    void watch(const TextModel &model, int32_t token);

    emoe_sampler_params const params_;
    emoe_constraint more_ = {}; // its numbers; what it points to is kept below
    std::vector<llama_logit_bias> bias_;
    LlamaSamplerPtr dry_;
    LlamaSamplerPtr chain_;
    LlamaSamplerPtr grammar_;
    std::string sequence_;
    std::string trigger_; // empty: the grammar holds
    std::string tail_;    // what was written last, while the trigger is awaited
    std::vector<llama_token_data> candidates_;
};

// See emoe_text_logprobs.
void logprobs(const TextModel &model, uint32_t i, int32_t token, float *logprob, uint32_t n_top, int32_t *top_tokens,
              float *top_logprobs);

} // namespace emoe
