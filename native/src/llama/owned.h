// llama.cpp's handles, closed with what holds them.
#pragma once

#include <llama.h>

#include <memory>

namespace emoe {

struct LlamaFree {
    void operator()(llama_model *m) const { llama_model_free(m); }
    void operator()(llama_context *c) const { llama_free(c); }
    void operator()(llama_sampler *s) const { llama_sampler_free(s); }
};
using LlamaModelPtr = std::unique_ptr<llama_model, LlamaFree>;
using LlamaContextPtr = std::unique_ptr<llama_context, LlamaFree>;
using LlamaSamplerPtr = std::unique_ptr<llama_sampler, LlamaFree>;

} // namespace emoe
