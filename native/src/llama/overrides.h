// Metadata that a person knows better than the file: `KEY=TYPE:VALUE`, as llama.cpp writes it.
#pragma once

#include <gguf.h>

#include <string>

namespace emoe {

// Changes the metadata, before anything reads it. Throws EMOE_ERR_ARGUMENT for what is no override, or one of another type
// than the key's; EMOE_ERR_UNSUPPORTED for keys that say how the file's tensors are laid out.
void apply_override(const std::string &text, gguf_context *meta);

} // namespace emoe
