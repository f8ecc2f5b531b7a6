#include "text.h"

#include "base/error.h"

#include <climits>
#include <cmath>

namespace emoe {

int64_t tokenize(const Engine &engine, const char *text, uint64_t bytes, bool add_special, bool parse_special,
                 int32_t *tokens, uint64_t cap) {
    if (bytes > INT32_MAX) fail(EMOE_ERR_ARGUMENT, "a text of more than 2 GiB");
    int32_t const room = static_cast<int32_t>(cap > INT32_MAX ? INT32_MAX : cap);
    int32_t const n =
        llama_tokenize(engine.vocab(), text, static_cast<int32_t>(bytes), tokens, room, add_special, parse_special);
    return n < 0 ? -int64_t{n} : n;
}

int64_t piece(const Engine &engine, int32_t token, bool special, char *buf, uint64_t cap) {
    if (token < 0 || token >= llama_vocab_n_tokens(engine.vocab())) return 0;
    int32_t const room = static_cast<int32_t>(cap > INT32_MAX ? INT32_MAX : cap);
    int32_t const n = llama_token_to_piece(engine.vocab(), token, buf, room, 0, special);
    return n < 0 ? -int64_t{n} : n;
}

Sampler::Sampler(const emoe_sampler_params &p) : params_(p) {
    if (!(p.temp >= 0) || !std::isfinite(p.temp))
        fail(EMOE_ERR_ARGUMENT, "a temperature of %g", static_cast<double>(p.temp));
    if (!(p.top_p > 0 && p.top_p <= 1)) fail(EMOE_ERR_ARGUMENT, "a top-p of %g", static_cast<double>(p.top_p));
    if (!(p.min_p >= 0 && p.min_p < 1)) fail(EMOE_ERR_ARGUMENT, "a min-p of %g", static_cast<double>(p.min_p));
    if (!(p.repeat_penalty > 0) || !std::isfinite(p.repeat_penalty))
        fail(EMOE_ERR_ARGUMENT, "a repeat penalty of %g", static_cast<double>(p.repeat_penalty));
}

// llama.cpp's own order of samplers.
void Sampler::build(uint32_t n_vocab) {
    llama_sampler_chain_params cp = llama_sampler_chain_default_params();
    cp.no_perf = true;
    chain_.reset(llama_sampler_chain_init(cp));
    auto const add = [this](llama_sampler *s) { llama_sampler_chain_add(chain_.get(), s); };
    emoe_sampler_params const &p = params_;
    if (p.repeat_penalty != 1 && p.repeat_last_n != 0)
        add(llama_sampler_init_penalties(static_cast<int32_t>(n_vocab), p.repeat_last_n, p.repeat_penalty, 0, 0));
    if (p.temp == 0) {
        add(llama_sampler_init_greedy());
        return;
    }
    if (p.top_k > 0) add(llama_sampler_init_top_k(p.top_k));
    if (p.top_p < 1) add(llama_sampler_init_top_p(p.top_p, 1));
    if (p.min_p > 0) add(llama_sampler_init_min_p(p.min_p, 1));
    add(llama_sampler_init_temp(p.temp));
    add(llama_sampler_init_dist(p.seed));
}

int32_t Sampler::sample(const Engine &engine, uint32_t i) {
    int32_t const index = engine.output_index(i);
    if (index == -2) return -1;
    if (!chain_) build(static_cast<uint32_t>(llama_vocab_n_tokens(engine.vocab())));
    return llama_sampler_sample(chain_.get(), engine.context(), index);
}

} // namespace emoe
