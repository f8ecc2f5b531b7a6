// A vocabulary without a model: tokenizer and samplers of llama.cpp for logits that somebody else computes.
#pragma once

#include "llama/owned.h"
#include "llama/text.h"

#include <string>

namespace emoe {

class Vocabulary : public TextModel {
public:
    explicit Vocabulary(const std::string &path); // a GGUF that needs no tensors

    // n_row rows of n_vocab, which stay the caller's and valid until the next call.
    void set_logits(const float *logits, uint32_t n_row);

    const llama_vocab *vocab() const override { return vocab_; }
    const float *logits(uint32_t i) const override;

private:
    LlamaModelPtr model_;
    const llama_vocab *vocab_ = nullptr;
    const float *logits_ = nullptr;
    uint32_t n_row_ = 0;
};

} // namespace emoe
