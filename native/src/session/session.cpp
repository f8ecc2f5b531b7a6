#include "session/session.h"

#include "base/machine.h"

#include <algorithm>

namespace emoe {

namespace {

constexpr size_t k_check_tokens = 32; // computed between two looks at the process's memory
// What llama.cpp's tokenizer takes meanwhile for a byte of text: 45 for prose, 205 for blanks without end.
constexpr uint64_t k_tokenizer_bytes = 210;
constexpr size_t k_short_text_bytes = 16 << 10; // what the margin bears

// What ends an answer in ChatML, also where the vocabulary has no such token.
constexpr const char *k_chatml = "chatml", *k_chatml_end = "<|im_end|>";

std::string render_chat(const std::string &source, const emoe_message *messages, uint32_t n_message) {
    uint64_t n = 0;
    std::string text;
    auto const render = [&](emoe_error *err) {
        return emoe_chat_render(source.c_str(), messages, n_message, text.data(), text.size(), &n, err);
    };
    call(render);
    text.resize(n + 1);
    call(render);
    text.resize(n);
    return text;
}

std::vector<std::string> stops_of(const emoe_answer_params &p) {
    std::vector<std::string> stop;
    if (p.n_stop != 0 && !p.stop) fail(EMOE_ERR_ARGUMENT, "stop is null");
    for (uint32_t i = 0; i < p.n_stop; i++) {
        if (!p.stop[i] || !p.stop[i][0]) fail(EMOE_ERR_ARGUMENT, "an empty stop text would end every answer at once");
        stop.emplace_back(p.stop[i]);
    }
    return stop;
}

} // namespace

struct Session::Answer {
    SamplerPtr sampler;
    TextStream stream;
    uint32_t max_tokens = 0;
    uint32_t n_token = 0;
    int32_t pending = -1; // sampled, shown, not yet computed
    bool ended = false;   // but what the stream holds back
};

Session::Session(const std::string &path, const std::string &cache_dir, const emoe_setup &setup, emoe_plan *known) {
    if (setup.n_sequence > 1)
        fail(EMOE_ERR_ARGUMENT, "a session has one conversation, not %u sequences", setup.n_sequence);
    emoe_model *opened = nullptr;
    call([&](emoe_error *err) {
        return emoe_model_open_with(path.c_str(), setup.override_kv, setup.n_override_kv, &opened, err);
    });
    ModelPtr model(opened);
    uint64_t const rss = rss_bytes();
    emoe_plan plan = {};
    plan.struct_size = sizeof plan;
    emoe_error err = {};
    emoe_status const planned = emoe_plan_make(model.get(), cache_dir.c_str(), &setup, &plan, &err);
    if (known) *known = plan;
    if (planned != EMOE_OK) throw Error(planned, err.message);
    char shell[4096];
    call(
        [&](emoe_error *e) { return emoe_shell_make(model.get(), cache_dir.c_str(), &setup, shell, sizeof shell, e); });

    emoe_setup shaped = setup;
    shaped.n_ctx = plan.n_ctx;
    shaped.n_ubatch = plan.n_ubatch;
    shaped.n_threads = plan.n_threads;
    shaped.row_cache_bytes = plan.row_cache_bytes;
    emoe_engine *engine = nullptr;
    call([&](emoe_error *e) { // the smallest cache: it grows as soon as it is known what is left for it
        return emoe_engine_open(model.get(), shell[0] ? shell : nullptr, &shaped, cache_min_bytes(plan), &engine, e);
    });
    engine_.reset(engine);
    text_ = emoe_engine_text(engine);
    n_ctx_ = emoe_engine_n_ctx(engine);
    chat_template_ = model_meta(model.get(), "tokenizer.chat_template");
    emoe_model_info info = {};
    info.struct_size = sizeof info;
    call([&](emoe_error *e) { return emoe_model_get_host_info(model.get(), &setup, &info, e); });
    model.reset(); // what the headers and loading took is the cache's from here on
    trim_heap();

    emoe_stats stats = {};
    stats.struct_size = sizeof stats;
    call([&](emoe_error *e) { return emoe_engine_get_stats(engine, &stats, e); });
    plan.decode_bytes = stats.decode_bytes; // what was planned, as it came out
    plan.prefill_bytes = stats.prefill_bytes;
    // Weights and KV cache are in place; these buffers fill as tokens are computed, and the app as it likes.
    uint64_t const untouched = stats.untouched_bytes + std::max(setup.process_bytes, rss) - rss;
    allowance_ = std::make_unique<Allowance>(
        plan, info, untouched,
        [engine](uint64_t bytes) {
            call([&](emoe_error *e) { return emoe_engine_set_cache_bytes(engine, bytes, e); });
        },
        rss_bytes);
}

Session::~Session() {
    cancel();
    std::lock_guard<std::mutex> const lock(busy_);
}

std::unique_lock<std::mutex> Session::exclusive() {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock.owns_lock()) fail(EMOE_ERR_ARGUMENT, "the session is busy in another thread");
    return lock;
}

void Session::cancel() {
    cancelled_.store(true);
    emoe_engine_cancel(engine_.get());
}

void Session::chat(const emoe_message *messages, uint32_t n_message, const char *chat_template,
                   const emoe_answer_params &params) {
    std::unique_lock<std::mutex> const lock = exclusive();
    std::string const source = chat_template ? chat_template : chat_template_;
    if (source.empty()) fail(EMOE_ERR_UNSUPPORTED, "the model has no chat template; \"chatml\" can be asked for");
    std::string const text = render_chat(source, messages, n_message);
    std::vector<std::string> stop = stops_of(params);
    if (source == k_chatml) stop.emplace_back(k_chatml_end);
    // A template that writes BOS itself gets no second one.
    int32_t const bos = emoe_text_bos(text_);
    std::string const bos_text = bos < 0 ? "" : piece(bos, true);
    bool const has_bos = !bos_text.empty() && text.compare(0, bos_text.size(), bos_text) == 0;
    begin(tokenize(text, !has_bos), std::move(stop), params);
}

void Session::prompt(const std::string &text, const emoe_answer_params &params) {
    std::unique_lock<std::mutex> const lock = exclusive();
    begin(tokenize(text, true), stops_of(params), params);
}

std::vector<int32_t> Session::tokenize(const std::string &text, bool add_special) {
    std::vector<int32_t> tokens;
    auto const run = [&] {
        tokens.resize(text.size() + 8); // a token is a byte or more, and a few are added
        int64_t n = 0;
        for (int i = 0; i < 2; i++) {
            n = emoe_text_tokenize(text_, text.data(), text.size(), add_special, 1, tokens.data(), tokens.size());
            if (n <= static_cast<int64_t>(tokens.size())) break;
            tokens.resize(static_cast<size_t>(n));
        }
        if (n < 0) fail(EMOE_ERR_INTERNAL, "the tokenizer failed on a text of %zu bytes", text.size());
        tokens.resize(static_cast<size_t>(n));
        tokens.shrink_to_fit();
    };
    if (text.size() <= k_short_text_bytes) {
        run();
    } else {
        allowance_->growing(k_tokenizer_bytes * text.size(), "reading the prompt", [&] {
            run();
            trim_heap();
        });
    }
    return tokens;
}

std::string Session::piece(int32_t token, bool special) const {
    std::string bytes(64, '\0');
    for (int i = 0; i < 2; i++) {
        int64_t const n = emoe_text_piece(text_, token, special, bytes.data(), bytes.size());
        if (n < 0) fail(EMOE_ERR_INTERNAL, "the vocabulary has no token %d", token);
        bool const fits = n <= static_cast<int64_t>(bytes.size());
        bytes.resize(static_cast<size_t>(n));
        if (fits) break;
    }
    return bytes;
}

void Session::begin(const std::vector<int32_t> &prompt, std::vector<std::string> stop,
                    const emoe_answer_params &params) {
    if (prompt.empty()) fail(EMOE_ERR_ARGUMENT, "the prompt is empty");
    if (prompt.size() > n_ctx_)
        fail(EMOE_ERR_CONTEXT, "the prompt has %zu tokens, the context holds %u", prompt.size(), n_ctx_);
    auto answer = std::make_unique<Answer>();
    emoe_sampler *sampler = nullptr;
    call([&](emoe_error *err) { return emoe_sampler_open(params.sampler, &sampler, err); });
    answer->sampler.reset(sampler);
    answer->stream = TextStream(std::move(stop));
    answer->max_tokens = params.max_tokens;
    answer_.reset();
    finish_ = EMOE_FINISH_NONE;
    cancelled_.store(false);
    emoe_engine_clear_cancel(engine_.get());
    become(prompt);
    answer_ = std::move(answer);
}

// Makes prompt the whole sequence, with the logits of its last token. A common beginning is not computed again.
void Session::become(const std::vector<int32_t> &prompt) {
    auto const differ =
        std::mismatch(tokens_.begin(), tokens_.begin() + std::min(tokens_.size(), prompt.size()), prompt.begin());
    auto const common = static_cast<size_t>(differ.first - tokens_.begin());
    size_t const keep = std::min(common, prompt.size() - 1); // the last is computed again for its logits
    emoe_error err = {};
    emoe_status const status = emoe_engine_rewind(engine_.get(), static_cast<uint32_t>(keep), &err);
    tokens_.resize(emoe_engine_n_past(engine_.get())); // a recurrent state cannot be cut: it was emptied
    if (status != EMOE_OK && status != EMOE_ERR_UNSUPPORTED) throw Error(status, err.message);
    append(prompt.data() + tokens_.size(), prompt.size() - tokens_.size());
    allowance_->check();
}

void Session::append(const int32_t *tokens, size_t n) {
    if (cancelled_.load()) fail(EMOE_ERR_CANCELLED, "cancelled");
    emoe_error err = {};
    emoe_status const status = emoe_engine_decode(engine_.get(), tokens, static_cast<uint32_t>(n), 0, &err);
    if (status != EMOE_OK) {
        tokens_.resize(std::min<size_t>(tokens_.size(), emoe_engine_n_past(engine_.get())));
        throw Error(status, err.message);
    }
    tokens_.insert(tokens_.end(), tokens, tokens + n);
    unchecked_ += n;
    if (unchecked_ >= k_check_tokens) {
        unchecked_ = 0;
        allowance_->check();
    }
}

const std::string *Session::next() {
    std::unique_lock<std::mutex> const lock = exclusive();
    if (!answer_) return nullptr;
    Answer &a = *answer_;
    try {
        while (!a.ended) {
            if (a.pending >= 0) {
                append(&a.pending, 1);
                a.pending = -1;
            }
            int32_t const token = emoe_sampler_sample(a.sampler.get(), text_, 0);
            if (token < 0) fail(EMOE_ERR_INTERNAL, "there are no logits to sample from");
            if (emoe_text_is_eog(text_, token) != 0) {
                finish_ = EMOE_FINISH_STOP;
                a.ended = true;
                break;
            }
            a.n_token++;
            a.pending = token;
            std::string const bytes = piece(token, false);
            shown_ = a.stream.feed(bytes.data(), bytes.size());
            if (a.stream.stopped()) {
                finish_ = EMOE_FINISH_STOP;
                a.ended = true;
            } else if (a.n_token == a.max_tokens || tokens_.size() >= n_ctx_) {
                finish_ = EMOE_FINISH_LENGTH;
                a.ended = true;
            }
            if (!shown_.empty()) return &shown_;
        }
    } catch (...) {
        answer_.reset();
        throw;
    }
    shown_ = a.stream.finish();
    answer_.reset();
    return shown_.empty() ? nullptr : &shown_;
}

} // namespace emoe
