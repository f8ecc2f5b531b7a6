// Text to tokens and back, and the choice of the next token: llama.cpp's tokenizers and samplers, wrapped.
#pragma once

#include "engine.h"

#include <edgemoe.h>

#include <llama.h>

#include <memory>

namespace emoe {

int64_t tokenize(const Engine &engine, const char *text, uint64_t bytes, bool add_special, bool parse_special,
                 int32_t *tokens, uint64_t cap);
int64_t piece(const Engine &engine, int32_t token, bool special, char *buf, uint64_t cap);

struct SamplerFree {
    void operator()(llama_sampler *s) const { llama_sampler_free(s); }
};

class Sampler {
public:
    explicit Sampler(const emoe_sampler_params &params);
    int32_t sample(const Engine &engine, uint32_t i);

private:
    void build(uint32_t n_vocab); // at the first use: the penalties want the size of the vocabulary

    emoe_sampler_params const params_;
    std::unique_ptr<llama_sampler, SamplerFree> chain_;
};

} // namespace emoe
