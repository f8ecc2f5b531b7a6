#include "llama/text.h"

#include "base/error.h"

#include <llama.h>

#include <climits>
#include <iterator>

namespace emoe {

int64_t tokenize(const TextModel &model, const char *text, uint64_t bytes, bool add_special, bool parse_special,
                 int32_t *tokens, uint64_t cap) {
    if (bytes > INT32_MAX) fail(EMOE_ERR_ARGUMENT, "a text of more than 2 GiB");
    int32_t const room = static_cast<int32_t>(cap > INT32_MAX ? INT32_MAX : cap);
    int32_t const n =
        llama_tokenize(model.vocab(), text, static_cast<int32_t>(bytes), tokens, room, add_special, parse_special);
    return n < 0 ? -int64_t{n} : n;
}

int64_t piece(const TextModel &model, int32_t token, bool special, char *buf, uint64_t cap) {
    if (token < 0 || token >= llama_vocab_n_tokens(model.vocab())) return 0;
    int32_t const room = static_cast<int32_t>(cap > INT32_MAX ? INT32_MAX : cap);
    int32_t const n = llama_token_to_piece(model.vocab(), token, buf, room, 0, special);
    return n < 0 ? -int64_t{n} : n;
}

uint32_t n_vocab(const TextModel &model) { return static_cast<uint32_t>(llama_vocab_n_tokens(model.vocab())); }

bool is_eog(const TextModel &model, int32_t token) {
    if (token < 0 || token >= llama_vocab_n_tokens(model.vocab())) return false;
    return llama_vocab_is_eog(model.vocab(), token);
}

int32_t bos(const TextModel &model) { return llama_vocab_bos(model.vocab()); }
int32_t fim(const TextModel &model, uint32_t mark) {
    int32_t (*const of[])(const llama_vocab *) = {llama_vocab_fim_pre, llama_vocab_fim_suf, llama_vocab_fim_mid,
                                                  llama_vocab_fim_rep, llama_vocab_fim_sep};
    return mark < std::size(of) ? of[mark](model.vocab()) : -1;
}

int32_t eos(const TextModel &model) { return llama_vocab_eos(model.vocab()); }

} // namespace emoe
