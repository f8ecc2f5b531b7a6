#include "llama/sampler.h"

#include "base/error.h"
#include "llama/log.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace emoe {

namespace {

constexpr float k_forbidden = -std::numeric_limits<float>::infinity();
// llama.cpp parses grammars and walks their rules recursively: what is larger could end the stack.
constexpr size_t k_grammar_bytes = 256 * 1024;
constexpr int k_grammar_depth = 200;
constexpr int32_t k_repeat_tokens = 1 << 20; // llama.cpp keeps room for all of them

void check_grammar(const char *text) {
    if (strlen(text) > k_grammar_bytes) fail(EMOE_ERR_ARGUMENT, "a grammar of %zu bytes is too large", strlen(text));
    int depth = 0;
    for (const char *c = text; *c; c++) {
        depth += *c == '(' ? 1 : *c == ')' ? -1 : 0;
        if (depth > k_grammar_depth)
            fail(EMOE_ERR_ARGUMENT, "a grammar with more than %d nested groups", k_grammar_depth);
    }
}

std::string piece_of(const TextModel &model, int32_t token) {
    std::string text(64, '\0');
    int64_t n = piece(model, token, true, text.data(), text.size());
    if (n > static_cast<int64_t>(text.size())) {
        text.resize(static_cast<size_t>(n));
        n = piece(model, token, true, text.data(), text.size());
    }
    text.resize(static_cast<size_t>(std::max<int64_t>(n, 0)));
    return text;
}

// llama.cpp's own order.
const std::string k_sequence = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature";

// A sampler's name as k_sequence has it, of the spellings that llama.cpp takes.
std::string canonical(std::string name) {
    std::replace(name.begin(), name.end(), '-', '_');
    if (name == "nucleus") return "top_p";
    if (name == "typ" || name == "typical" || name == "typical_p") return "typ_p";
    return name == "temp" ? "temperature" : name;
}

llama_sampler *temperature(const emoe_sampler_params &p, const emoe_constraint &c) {
    return c.dynatemp_range > 0 ? llama_sampler_init_temp_ext(p.temp, c.dynatemp_range, c.dynatemp_exponent)
                                : llama_sampler_init_temp(p.temp);
}

// The numbers of a constraint; what they are for is llama.cpp's.
void check_numbers(const emoe_constraint &c) {
    if (!std::isfinite(c.presence_penalty) || !std::isfinite(c.frequency_penalty))
        fail(EMOE_ERR_ARGUMENT, "a penalty that is not a number");
    auto const within = [](float value, float low, float high, const char *what) {
        if (!(value >= low && value <= high)) fail(EMOE_ERR_ARGUMENT, "%s of %g", what, static_cast<double>(value));
    };
    constexpr float k_most = 1e6f;
    within(c.typical_p, 0, 1, "a typical-p");
    within(c.top_n_sigma, 0, k_most, "a top-n-sigma");
    within(c.xtc_probability, 0, 1, "an XTC probability");
    within(c.xtc_threshold, 0, 1, "an XTC threshold");
    within(c.dry_multiplier, 0, k_most, "a DRY multiplier");
    within(c.dry_base, 0, k_most, "a DRY base");
    within(c.mirostat_tau, 0, k_most, "a mirostat tau");
    within(c.mirostat_eta, 0, k_most, "a mirostat eta");
    within(c.dynatemp_range, 0, k_most, "a range of temperatures");
    within(c.dynatemp_exponent, 0, k_most, "an exponent of temperatures");
    if (c.mirostat > 2) fail(EMOE_ERR_ARGUMENT, "mirostat %u: there are 1 and 2", c.mirostat);
    if (c.dry_allowed_length < 0 || c.dry_last_n < -1 || c.dry_last_n > k_repeat_tokens)
        fail(EMOE_ERR_ARGUMENT, "a DRY length of %d over %d tokens", c.dry_allowed_length, c.dry_last_n);
    if (c.n_dry_breaker > 0 && !c.dry_breakers) fail(EMOE_ERR_ARGUMENT, "DRY breakers without texts");
}

} // namespace

Sampler::Sampler(const emoe_sampler_params &p) : params_(p) {
    if (!(p.temp >= 0) || !std::isfinite(p.temp))
        fail(EMOE_ERR_ARGUMENT, "a temperature of %g", static_cast<double>(p.temp));
    if (!(p.top_p > 0 && p.top_p <= 1)) fail(EMOE_ERR_ARGUMENT, "a top-p of %g", static_cast<double>(p.top_p));
    if (!(p.min_p >= 0 && p.min_p <= 1)) fail(EMOE_ERR_ARGUMENT, "a min-p of %g", static_cast<double>(p.min_p));
    if (!(p.repeat_penalty > 0) || !std::isfinite(p.repeat_penalty))
        fail(EMOE_ERR_ARGUMENT, "a repeat penalty of %g", static_cast<double>(p.repeat_penalty));
    if (p.repeat_last_n > k_repeat_tokens)
        fail(EMOE_ERR_ARGUMENT, "%d tokens to look back on: at most %d", p.repeat_last_n, k_repeat_tokens);
}

void Sampler::constrain(const TextModel &model, const emoe_constraint &c) {
    if (chain_) fail(EMOE_ERR_ARGUMENT, "a sampler that has picked a token can no longer be constrained");
    check_numbers(c);
    if (c.n_bias > 0 && (!c.bias_tokens || !c.bias_values)) fail(EMOE_ERR_ARGUMENT, "biases without tokens or values");
    int32_t const n_vocab = llama_vocab_n_tokens(model.vocab());
    std::vector<llama_logit_bias> bias;
    for (uint32_t i = 0; i < c.n_bias; i++) {
        if (c.bias_tokens[i] < 0 || c.bias_tokens[i] >= n_vocab)
            fail(EMOE_ERR_ARGUMENT, "token %d is not in the vocabulary of %d", c.bias_tokens[i], n_vocab);
        if (std::isnan(c.bias_values[i]) || c.bias_values[i] > 1e9f)
            fail(EMOE_ERR_ARGUMENT, "a bias of %g", static_cast<double>(c.bias_values[i]));
        bias.push_back({c.bias_tokens[i], c.bias_values[i]});
    }
    if (c.ignore_eos != 0)
        for (int32_t token = 0; token < n_vocab; token++)
            if (llama_vocab_is_eog(model.vocab(), token)) bias.push_back({token, k_forbidden});
    LlamaSamplerPtr grammar;
    if (c.grammar && c.grammar[0]) { // to llama.cpp, too, an empty one is none
        check_grammar(c.grammar);
        AssertionGuard const guard;
        LogCapture const log;
        grammar.reset(llama_sampler_init_grammar(model.vocab(), c.grammar, "root"));
        if (!grammar)
            fail(EMOE_ERR_ARGUMENT, "llama.cpp takes no such grammar: %s", log.last_error("no reason given").c_str());
    }
    dry_ = dry(model, c);
    more_ = c;
    more_.bias_tokens = nullptr; // the caller's, which may go
    more_.bias_values = nullptr;
    more_.grammar = more_.grammar_trigger = nullptr;
    more_.dry_breakers = nullptr;
    sequence_ = c.sequence ? c.sequence : "";
    more_.sequence = nullptr;
    bias_ = std::move(bias);
    grammar_ = std::move(grammar);
    trigger_ = grammar_ && c.grammar_trigger ? c.grammar_trigger : "";
    tail_.clear();
}

LlamaSamplerPtr Sampler::dry(const TextModel &model, const emoe_constraint &c) const {
    if (c.dry_multiplier == 0 || c.dry_last_n == 0) return nullptr;
    std::vector<const char *> breakers = {"\n", ":", "\"", "*"};
    if (c.dry_breakers) breakers.assign(c.dry_breakers, c.dry_breakers + c.n_dry_breaker);
    int32_t const n = c.dry_last_n < 0 ? params_.repeat_last_n : c.dry_last_n;
    AssertionGuard const guard;
    return LlamaSamplerPtr(llama_sampler_init_dry(model.vocab(), c.dry_multiplier, c.dry_base, c.dry_allowed_length, n,
                                                  breakers.data(), breakers.size()));
}

void Sampler::build(uint32_t n_vocab) {
    llama_sampler_chain_params cp = llama_sampler_chain_default_params();
    cp.no_perf = true;
    chain_.reset(llama_sampler_chain_init(cp));
    auto const add = [this](llama_sampler *s) { llama_sampler_chain_add(chain_.get(), s); };
    int32_t const n = static_cast<int32_t>(n_vocab);
    if (!bias_.empty()) add(llama_sampler_init_logit_bias(n, static_cast<int32_t>(bias_.size()), bias_.data()));
    // For LLAMA_DEFAULT_SEED llama.cpp would draw one, and the answer could not be had again.
    uint32_t const seed = params_.seed == LLAMA_DEFAULT_SEED ? 0 : params_.seed;
    if (params_.temp > 0 && more_.mirostat != 0) {
        add(temperature(params_, more_));
        constexpr int32_t k_m = 100; // the paper's
        add(more_.mirostat == 1 ? llama_sampler_init_mirostat(n, seed, more_.mirostat_tau, more_.mirostat_eta, k_m)
                                : llama_sampler_init_mirostat_v2(seed, more_.mirostat_tau, more_.mirostat_eta));
        return;
    }
    add_in_order(n, seed);
    add(params_.temp == 0 ? llama_sampler_init_greedy() : llama_sampler_init_dist(seed));
}

// What moves or drops candidates. At temperature 0 the likeliest is taken: only what changes which that is matters.
void Sampler::add_in_order(int32_t n_vocab, uint32_t seed) {
    emoe_sampler_params const &p = params_;
    emoe_constraint const &c = more_;
    bool const greedy = p.temp == 0;
    auto const make = [&](const std::string &name) -> llama_sampler * {
        if (name == "penalties") {
            bool const wanted = p.repeat_penalty != 1 || c.presence_penalty != 0 || c.frequency_penalty != 0;
            return !wanted || p.repeat_last_n == 0
                       ? nullptr
                       : llama_sampler_init_penalties(n_vocab, p.repeat_last_n, p.repeat_penalty, c.frequency_penalty,
                                                      c.presence_penalty);
        }
        if (name == "dry") return dry_.release();
        if (greedy) return nullptr;
        if (name == "top_n_sigma") return c.top_n_sigma > 0 ? llama_sampler_init_top_n_sigma(c.top_n_sigma) : nullptr;
        if (name == "top_k") return p.top_k > 0 ? llama_sampler_init_top_k(p.top_k) : nullptr;
        if (name == "typ_p")
            return c.typical_p > 0 && c.typical_p < 1 ? llama_sampler_init_typical(c.typical_p, 1) : nullptr;
        if (name == "top_p") return p.top_p < 1 ? llama_sampler_init_top_p(p.top_p, 1) : nullptr;
        if (name == "min_p") return p.min_p > 0 ? llama_sampler_init_min_p(p.min_p, 1) : nullptr;
        if (name == "xtc")
            return c.xtc_probability > 0 ? llama_sampler_init_xtc(c.xtc_probability, c.xtc_threshold, 1, seed)
                                         : nullptr;
        return name == "temperature" ? temperature(p, c) : nullptr;
    };
    std::string const &order = sequence_.empty() ? k_sequence : sequence_;
    for (size_t at = 0; at < order.size();) {
        size_t const end = std::min(order.find(';', at), order.size());
        llama_sampler *const one = make(canonical(order.substr(at, end - at)));
        if (one) llama_sampler_chain_add(chain_.get(), one);
        at = end + 1;
    }
}

int32_t Sampler::sample(const TextModel &model, uint32_t i) {
    const float *logits = model.logits(i);
    if (!logits) return -1;
    auto const n_vocab = static_cast<uint32_t>(llama_vocab_n_tokens(model.vocab()));
    if (!chain_) build(n_vocab);
    candidates_.resize(n_vocab);
    int32_t token = pick(logits, false);
    if (!grammar_ || !trigger_.empty()) {
        llama_sampler_accept(chain_.get(), token);
        if (grammar_) watch(model, token);
        return token;
    }
    // The whole vocabulary meets the grammar only when the first choice breaks it: that is slow and rare.
    if (!allows(token)) token = pick(logits, true);
    if (token < 0) return -2;
    llama_sampler_accept(grammar_.get(), token);
    llama_sampler_accept(chain_.get(), token);
    return token;
}

int32_t Sampler::pick(const float *logits, bool obey) {
    for (size_t i = 0; i < candidates_.size(); i++) candidates_[i] = {static_cast<int32_t>(i), logits[i], 0};
    llama_token_data_array all = {candidates_.data(), candidates_.size(), -1, false};
    if (obey) {
        llama_sampler_apply(grammar_.get(), &all);
        // Out of the way, not only at minus infinity: accepting a forbidden token would end the process.
        auto const end = std::remove_if(candidates_.begin(), candidates_.end(),
                                        [](const llama_token_data &c) { return c.logit == k_forbidden; });
        all.size = static_cast<size_t>(end - candidates_.begin());
        if (all.size == 0) return -1;
    }
    llama_sampler_apply(chain_.get(), &all);
    return all.selected < 0 ? -1 : all.data[all.selected].id;
}

bool Sampler::allows(int32_t token) {
    if (token < 0) return false;
    llama_token_data one = {token, 0, 0};
    llama_token_data_array array = {&one, 1, -1, false};
    llama_sampler_apply(grammar_.get(), &array);
    return one.logit != k_forbidden;
}

void Sampler::watch(const TextModel &model, int32_t token) {
    tail_ += piece_of(model, token);
    size_t const at = tail_.find(trigger_);
    if (at == std::string::npos) {
        if (tail_.size() >= trigger_.size()) tail_.erase(0, tail_.size() - trigger_.size() + 1);
        return;
    }
    std::string const rest = tail_.substr(at + trigger_.size());
    trigger_.clear();
    tail_.clear();
    if (rest.empty()) return;
    // The token that ended the trigger wrote on. The grammar takes only tokens: those of the rest.
    std::vector<int32_t> tokens(rest.size() + 8);
    int64_t const n = tokenize(model, rest.data(), rest.size(), false, true, tokens.data(), tokens.size());
    for (int64_t i = 0; i < n; i++) {
        if (allows(tokens[static_cast<size_t>(i)])) {
            llama_sampler_accept(grammar_.get(), tokens[static_cast<size_t>(i)]);
            continue;
        }
        grammar_.reset(); // what was written already breaks it: nothing is left to hold
        return;
    }
}

void logprobs(const TextModel &model, uint32_t i, int32_t token, float *logprob, uint32_t n_top, int32_t *top_tokens,
              float *top_logprobs) {
    const float *logits = model.logits(i);
    if (!logits) fail(EMOE_ERR_ARGUMENT, "the last evaluation kept no logits in row %u", i);
    int32_t const n_vocab = llama_vocab_n_tokens(model.vocab());
    if (token < 0 || token >= n_vocab)
        fail(EMOE_ERR_ARGUMENT, "token %d is not in the vocabulary of %d", token, n_vocab);
    if (n_top > static_cast<uint32_t>(n_vocab))
        fail(EMOE_ERR_ARGUMENT, "the %u likeliest of %d tokens", n_top, n_vocab);
    float const highest = *std::max_element(logits, logits + n_vocab);
    double const sum = std::accumulate(logits, logits + n_vocab, 0.0, [highest](double s, float l) {
        return s + std::exp(static_cast<double>(l) - static_cast<double>(highest));
    });
    double const normal = static_cast<double>(highest) + std::log(sum);
    auto const of = [logits, normal](int32_t t) { return static_cast<float>(static_cast<double>(logits[t]) - normal); };
    *logprob = of(token);
    if (n_top == 0) return;
    std::vector<int32_t> order(static_cast<size_t>(n_vocab));
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + n_top, order.end(), [logits](int32_t a, int32_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    for (uint32_t t = 0; t < n_top; t++) {
        top_tokens[t] = order[t];
        top_logprobs[t] = of(order[t]);
    }
}

} // namespace emoe
