#include "llama/vocabulary.h"

#include "base/error.h"
#include "llama/log.h"
#include "llama/measure.h"

namespace emoe {

Vocabulary::Vocabulary(const std::string &path) {
    AssertionGuard const guard;
    LogCapture const log;
    llama_model_params params = model_params();
    params.vocab_only = true;
    model_.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model_)
        fail(EMOE_ERR_FORMAT, "llama.cpp refuses the vocabulary: %s", log.last_error("no reason given").c_str());
    vocab_ = llama_model_get_vocab(model_.get());
}

void Vocabulary::set_logits(const float *logits, uint32_t n_row) {
    logits_ = logits;
    n_row_ = logits ? n_row : 0;
}

const float *Vocabulary::logits(uint32_t i) const {
    if (i >= n_row_) return nullptr;
    return logits_ + static_cast<size_t>(i) * static_cast<size_t>(llama_vocab_n_tokens(vocab_));
}

} // namespace emoe
