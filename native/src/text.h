// Text to tokens and back: llama.cpp's tokenizers, wrapped.
#pragma once

#include "engine.h"

#include <cstdint>

namespace emoe {

int64_t tokenize(const Engine &engine, const char *text, uint64_t bytes, bool add_special, bool parse_special,
                 int32_t *tokens, uint64_t cap);
int64_t piece(const Engine &engine, int32_t token, bool special, char *buf, uint64_t cap);

} // namespace emoe
