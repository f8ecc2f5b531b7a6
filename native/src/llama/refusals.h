// What llama.cpp would end the process for, or compute garbage with: found before it comes to that, and said in words.
//
// ggml builds a graph of any types and checks them when it computes, if at all: a product by a type that has no kernel
// calls a null pointer. Here the rules come from ggml's public traits. What they do not tell is found by a first graph
// that is computed on the thread that opens the model, under an AssertionGuard (engine/engine.cpp).
#pragma once

#include "llama/index.h"

#include <ggml.h>
#include <llama.h>

#include <string>

namespace emoe {

// Throws EMOE_ERR_FORMAT for metadata with which nothing can be computed: an epsilon that is negative or no number.
void check_metadata(const ModelIndex &index);

// Throws EMOE_ERR_UNSUPPORTED for what is loaded well and yet never writes a text: encoders, diffusion, no tokenizer.
void check_model(const llama_model *model);
void check_context(const llama_context *ctx);

// Why the CPU cannot compute this node: a weight of a type that has no kernel in this role. Empty when it can.
std::string cannot_compute(const ggml_tensor *node);

// Why several tokens in one graph of this model cannot each be rounded as if decoded alone, empty when they can.
std::string no_columns(const llama_model *model, bool on_gpu);
// Throws EMOE_ERR_UNSUPPORTED where that rules out several sequences side by side.
void check_sequences(const llama_model *model, bool on_gpu);

} // namespace emoe
