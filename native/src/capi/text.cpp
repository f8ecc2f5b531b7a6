// edgemoe.h: text, sampling, constraints and log-probabilities, streams of text.
#include "llama/text.h"
#include "base/guard.h"
#include "capi/handles.h"
#include "llama/sampler.h"
#include "text/stream.h"

using namespace emoe;

struct emoe_sampler {
    std::unique_ptr<Sampler> sampler;
};

struct emoe_stream {
    TextStream stream;
    std::string text; // what was returned last
};

emoe_status emoe_text_open(const char *path, emoe_text **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_pointer(out, "out");
        auto text = std::make_unique<emoe_text>();
        text->own = std::make_unique<Vocabulary>(path);
        text->model = text->own.get();
        *out = text.release();
    });
}

void emoe_text_close(emoe_text *text) {
    if (text && text->own) delete text;
}

emoe_status emoe_text_set_logits(emoe_text *text, const float *logits, uint32_t n_row, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(text, "text");
        if (!text->own) fail(EMOE_ERR_ARGUMENT, "an engine computes its logits itself");
        text->own->set_logits(logits, n_row);
    });
}

const float *emoe_text_logits(const emoe_text *text, uint32_t i) { return text ? text->model->logits(i) : nullptr; }

int64_t emoe_text_tokenize(const emoe_text *text, const char *bytes, uint64_t n_bytes, uint32_t add_special,
                           uint32_t parse_special, int32_t *tokens, uint64_t cap) {
    int64_t n = -1;
    (void)guarded(nullptr, [&] {
        check_pointer(text, "text");
        if (n_bytes != 0) check_pointer(bytes, "bytes");
        n = tokenize(*text->model, bytes, n_bytes, add_special != 0, parse_special != 0, tokens, tokens ? cap : 0);
    });
    return n;
}

int64_t emoe_text_piece(const emoe_text *text, int32_t token, uint32_t special, char *buf, uint64_t cap) {
    int64_t n = -1;
    (void)guarded(nullptr, [&] {
        check_pointer(text, "text");
        n = piece(*text->model, token, special != 0, buf, buf ? cap : 0);
    });
    return n;
}

uint32_t emoe_text_is_eog(const emoe_text *text, int32_t token) { return text && is_eog(*text->model, token) ? 1 : 0; }

int32_t emoe_text_bos(const emoe_text *text) { return text ? bos(*text->model) : -1; }
int32_t emoe_text_eos(const emoe_text *text) { return text ? eos(*text->model) : -1; }

int32_t emoe_text_fim(const emoe_text *text, uint32_t mark) { return text ? fim(*text->model, mark) : -1; }

uint32_t emoe_text_n_vocab(const emoe_text *text) { return text ? n_vocab(*text->model) : 0; }

emoe_status emoe_sampler_open(const emoe_sampler_params *params, emoe_sampler **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(out, "out");
        emoe_sampler_params p = read_struct(params, "emoe_sampler_params");
        if (p.top_p == 0) p.top_p = 1; // zeros are defaults: off
        if (p.repeat_penalty == 0) p.repeat_penalty = 1;
        auto sampler = std::make_unique<emoe_sampler>();
        sampler->sampler = std::make_unique<Sampler>(p);
        *out = sampler.release();
    });
}

void emoe_sampler_close(emoe_sampler *sampler) { delete sampler; }

int32_t emoe_sampler_sample(emoe_sampler *sampler, const emoe_text *text, uint32_t i) {
    int32_t token = -1;
    (void)guarded(nullptr, [&] {
        if (sampler && text) token = sampler->sampler->sample(*text->model, i);
    });
    return token;
}

emoe_status emoe_sampler_constrain(emoe_sampler *sampler, const emoe_text *text, const emoe_constraint *constraint,
                                   emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(sampler, "sampler");
        check_pointer(text, "text");
        sampler->sampler->constrain(*text->model, read_struct(constraint, "emoe_constraint"));
    });
}

emoe_status emoe_text_logprobs(const emoe_text *text, uint32_t i, int32_t token, float *logprob, uint32_t n_top,
                               int32_t *top_tokens, float *top_logprobs, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(text, "text");
        check_pointer(logprob, "logprob");
        if (n_top > 0) {
            check_pointer(top_tokens, "top_tokens");
            check_pointer(top_logprobs, "top_logprobs");
        }
        logprobs(*text->model, i, token, logprob, n_top, top_tokens, top_logprobs);
    });
}

emoe_status emoe_stream_open(const char *const *stop, const uint64_t *stop_bytes, uint32_t n_stop, emoe_stream **out,
                             emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(out, "out");
        if (n_stop != 0) {
            check_pointer(stop, "stop");
            check_pointer(stop_bytes, "stop_bytes");
        }
        std::vector<std::string> texts;
        for (uint32_t i = 0; i < n_stop; i++) {
            check_pointer(stop[i], "stop");
            texts.emplace_back(stop[i], stop_bytes[i]);
        }
        *out = new emoe_stream{TextStream(std::move(texts)), ""};
    });
}

void emoe_stream_close(emoe_stream *stream) { delete stream; }

emoe_status emoe_stream_feed(emoe_stream *stream, const char *bytes, uint64_t n_bytes, const char **text,
                             uint64_t *text_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(stream, "stream");
        check_pointer(text, "text");
        check_pointer(text_bytes, "text_bytes");
        if (n_bytes != 0) check_pointer(bytes, "bytes");
        stream->text = stream->stream.feed(bytes, n_bytes);
        *text = stream->text.c_str();
        *text_bytes = stream->text.size();
    });
}

emoe_status emoe_stream_finish(emoe_stream *stream, const char **text, uint64_t *text_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(stream, "stream");
        check_pointer(text, "text");
        check_pointer(text_bytes, "text_bytes");
        stream->text = stream->stream.finish();
        *text = stream->text.c_str();
        *text_bytes = stream->text.size();
    });
}

uint32_t emoe_stream_stopped(const emoe_stream *stream) { return stream && stream->stream.stopped() ? 1 : 0; }
