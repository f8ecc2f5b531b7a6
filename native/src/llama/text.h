// Text to tokens and back: llama.cpp's tokenizers, wrapped.
#pragma once

#include <llama.h>

#include <cstdint>

namespace emoe {

// What reading and writing text needs of a model, whoever computes it.
class TextModel {
public:
    virtual ~TextModel() = default;
    virtual const llama_vocab *vocab() const = 0;
    virtual const float *logits(uint32_t i) const = 0; // row i of the last computation, null when there is none
};

int64_t tokenize(const TextModel &model, const char *text, uint64_t bytes, bool add_special, bool parse_special,
                 int32_t *tokens, uint64_t cap);
// 0 for no token of the vocabulary.
int64_t piece(const TextModel &model, int32_t token, bool special, char *buf, uint64_t cap);
uint32_t n_vocab(const TextModel &model);
bool is_eog(const TextModel &model, int32_t token); // false for no token of the vocabulary
int32_t bos(const TextModel &model);                // -1 when it has none
int32_t eos(const TextModel &model);
int32_t fim(const TextModel &model, uint32_t mark); // EMOE_FIM_*; -1 when it has none

} // namespace emoe
