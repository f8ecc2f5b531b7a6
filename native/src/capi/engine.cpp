// edgemoe.h implemented, but for the session (app/capi.cpp): argument checks, exceptions to statuses, nothing else.
#include "base/guard.h"
#include "engine/engine.h"
#include "llama/collect.h"
#include "llama/index.h"
#include "llama/kernels.h"
#include "llama/log.h"
#include "llama/measure.h"
#include "llama/shell.h"
#include "llama/sampler.h"
#include "engine/speed.h"
#include "llama/text.h"
#include "llama/vocabulary.h"

#include <edgemoe.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

using namespace emoe;

struct emoe_model {
    std::unique_ptr<ModelIndex> index;
};
struct emoe_engine {
    std::unique_ptr<Collector> collector; // outlives the engine, which may be told of it
    std::unique_ptr<Engine> engine;
    std::unique_ptr<Vocabulary> vocabulary; // instead of an engine, where somebody else computes

    const TextModel &text() const {
        if (engine) return *engine;
        return *vocabulary;
    }
};
struct emoe_sampler {
    std::unique_ptr<Sampler> sampler;
};

namespace {

void check_context(const emoe_context_params &p) {
    check_struct(&p, "emoe_context_params");
    if (p.n_ctx == 0) fail(EMOE_ERR_ARGUMENT, "a context of 0 tokens");
    if (p.n_ubatch == 0 || p.n_ubatch > p.n_ctx)
        fail(EMOE_ERR_ARGUMENT, "batches of %u tokens in a context of %u", p.n_ubatch, p.n_ctx);
    if (p.n_threads == 0 || p.n_threads > 512) fail(EMOE_ERR_ARGUMENT, "%u threads", p.n_threads);
    if (p.n_outputs_max == 0) fail(EMOE_ERR_ARGUMENT, "no row of logits");
    if (p.kv_type != GGML_TYPE_F16 && p.kv_type != GGML_TYPE_F32 && p.kv_type != GGML_TYPE_Q8_0)
        fail(EMOE_ERR_ARGUMENT, "a KV cache of type %u", p.kv_type);
}

// An engine that computes itself, for everything but text.
bool computes(const emoe_engine *engine) { return engine && engine->engine; }

void check_engine(const emoe_engine *engine) {
    check_pointer(engine, "engine");
    if (!engine->engine) fail(EMOE_ERR_ARGUMENT, "this engine is only a vocabulary");
}

void copy_text(char *to, size_t size, const std::string &from) { snprintf(to, size, "%s", from.c_str()); }

} // namespace

uint32_t emoe_abi_version(void) { return EMOE_ABI_VERSION; }

const char *emoe_build_info(void) {
    static std::string const info = std::string("ggml ") + ggml_version() + " (" + ggml_commit() + ")";
    return info.c_str();
}

void emoe_set_log_level(uint32_t level) { set_log_level(level); }

emoe_status emoe_model_open(const char *path, emoe_model **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_pointer(out, "out");
        auto model = std::make_unique<emoe_model>();
        model->index = index_model(path);
        *out = model.release();
    });
}

void emoe_model_close(emoe_model *model) { delete model; }

emoe_status emoe_model_get_info(const emoe_model *model, emoe_model_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(info, "emoe_model_info");
        ModelIndex const &m = *model->index;
        emoe_model_info i = {};
        i.struct_size = sizeof i;
        i.n_layer = static_cast<uint32_t>(m.number("block_count", 0));
        i.n_moe_layer = static_cast<uint32_t>(m.layout.layers.size());
        i.n_expert_used = m.layout.n_expert_used;
        i.n_ctx_train = static_cast<uint32_t>(m.number("context_length", 0));
        i.n_embd = static_cast<uint32_t>(m.number("embedding_length", 0));
        int64_t const tokens = gguf_find_key(m.meta.get(), "tokenizer.ggml.tokens");
        i.n_vocab = tokens >= 0 ? static_cast<uint32_t>(gguf_get_arr_n(m.meta.get(), tokens))
                                : static_cast<uint32_t>(m.number("vocab_size", 0));
        i.n_file = static_cast<uint32_t>(m.layout.paths.size());
        i.direct_io = m.direct_io ? 1 : 0;
        i.file_bytes = m.file_bytes;
        i.dense_bytes = m.dense_bytes;
        i.dense_token_bytes = m.dense_token_bytes;
        i.expert_bytes = m.expert_bytes;
        i.token_bytes = m.token_bytes;
        i.n_expert_total = m.layout.n_expert_total;
        i.identity = m.identity;
        for (ExpertLayer const &layer : m.layout.layers) {
            i.n_expert = std::max(i.n_expert, layer.n_expert);
        }
        SlotClasses const classes = slot_classes(m.layout);
        i.slot_bytes = classes.max_bytes();
        i.slot_min_bytes = classes.min_bytes();
        copy_text(i.architecture, sizeof i.architecture, m.architecture);
        copy_text(i.name, sizeof i.name, m.name);
        *info = i;
    });
}

emoe_status emoe_model_get_layer(const emoe_model *model, uint32_t index, emoe_layer_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(info, "emoe_layer_info");
        auto const &layers = model->index->layout.layers;
        if (index >= layers.size())
            fail(EMOE_ERR_ARGUMENT, "there is no mixture layer %u: there are %zu", index, layers.size());
        ExpertLayer const &layer = layers[index];
        emoe_layer_info i = {};
        i.struct_size = sizeof i;
        i.layer = layer.layer;
        i.n_expert = layer.n_expert;
        i.n_matrix = static_cast<uint32_t>(layer.matrices.size());
        for (Place const &place : layer.places) i.slot_bytes = std::max(i.slot_bytes, place.slot_bytes);
        uint64_t bytes = 0;
        for (Slice const &s : layer.slices) bytes += s.bytes;
        i.expert_bytes = bytes / layer.n_expert;
        double weights = 0;
        std::string types;
        for (uint32_t m = 0; m < layer.matrices.size(); m++) {
            Matrix const &matrix = layer.matrices[m];
            weights += static_cast<double>(matrix.n_col) * matrix.n_row;
            std::map<uint16_t, uint32_t> count;
            for (uint32_t e = 0; e < layer.n_expert; e++) count[layer.slice(e, m).type]++;
            auto const most = std::max_element(count.begin(), count.end(),
                                               [](auto const &a, auto const &b) { return a.second < b.second; });
            types += (types.empty() ? "" : " ") + matrix.role + "=" +
                     ggml_type_name(static_cast<ggml_type>(most->first)) + (count.size() > 1 ? "+" : "");
        }
        i.bits_per_weight = static_cast<float>(8.0 * static_cast<double>(i.expert_bytes) / weights);
        copy_text(i.types, sizeof i.types, types);
        *info = i;
    });
}

int64_t emoe_model_meta(const emoe_model *model, const char *key, char *buf, uint64_t buf_bytes) {
    std::string text;
    if (!model || !key || !meta_text(model->index->meta.get(), key, &text)) return -1;
    if (buf && buf_bytes > 0) snprintf(buf, buf_bytes, "%s", text.c_str());
    return static_cast<int64_t>(text.size());
}

emoe_status emoe_shell_write(const emoe_model *model, const char *path, uint32_t with_data, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(path, "path");
        write_shell(*model->index, path, with_data != 0);
    });
}

emoe_status emoe_shell_check(const emoe_model *model, const char *path, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(path, "path");
        check_shell(*model->index, path, true);
    });
}

emoe_status emoe_context_measure(const emoe_model *model, const char *shell_path, const emoe_context_params *params,
                                 emoe_context_sizes *sizes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(shell_path, "shell_path");
        check_pointer(params, "params");
        check_context(*params);
        check_struct(sizes, "emoe_context_sizes");
        measure_context(*model->index, shell_path, *params, sizes);
    });
}

emoe_status emoe_gpu_experts_measure(const emoe_model *model, const uint32_t *experts, uint64_t n, uint32_t n_ubatch,
                                     uint64_t *gpu_bytes, uint64_t *host_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(gpu_bytes, "gpu_bytes");
        check_pointer(host_bytes, "host_bytes");
        if (n != 0) check_pointer(experts, "experts");
        TierBytes const b = GpuTier::bytes(*model->index, std::vector<uint32_t>(experts, experts + n), n_ubatch);
        *gpu_bytes = b.gpu;
        *host_bytes = b.host;
    });
}

emoe_status emoe_gpu_experts_speed(const emoe_model *model, uint32_t device, uint32_t index, uint32_t n, uint64_t *ns,
                                   emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(ns, "ns");
        if (device == 0 || n == 0 || index >= model->index->layout.layers.size())
            fail(EMOE_ERR_ARGUMENT, "device %u, %u experts of layer %u: nothing to measure", device, n, index);
        *ns = GpuTier::measure_ns(*model->index, gpu_device(device), index, n);
    });
}

emoe_status emoe_engine_open(const emoe_model *model, const char *shell_path, const emoe_engine_params *params,
                             emoe_engine **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(shell_path, "shell_path");
        check_pointer(out, "out");
        check_struct(params, "emoe_engine_params");
        check_context(params->context);
        if (params->policy >= k_n_policy) fail(EMOE_ERR_ARGUMENT, "unknown eviction policy %u", params->policy);
        if (params->prefetch > EMOE_PREFETCH_ON) fail(EMOE_ERR_ARGUMENT, "unknown prefetch mode %u", params->prefetch);
        if (params->reader > EMOE_READER_URING) fail(EMOE_ERR_ARGUMENT, "unknown reader %u", params->reader);
        if (params->n_read_lane > 64) fail(EMOE_ERR_ARGUMENT, "%u reads at once: at most 64", params->n_read_lane);
        auto engine = std::make_unique<emoe_engine>();
        engine->engine = std::make_unique<Engine>(*model->index, shell_path, *params);
        *out = engine.release();
    });
}

void emoe_engine_close(emoe_engine *engine) { delete engine; }

emoe_status emoe_vocabulary_open(const char *path, emoe_engine **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_pointer(out, "out");
        auto engine = std::make_unique<emoe_engine>();
        engine->vocabulary = std::make_unique<Vocabulary>(path);
        *out = engine.release();
    });
}

emoe_status emoe_vocabulary_set_logits(emoe_engine *engine, const float *logits, uint32_t n_row, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(engine, "engine");
        if (!engine->vocabulary) fail(EMOE_ERR_ARGUMENT, "this engine computes its logits itself");
        engine->vocabulary->set_logits(logits, n_row);
    });
}

emoe_status emoe_engine_decode(emoe_engine *engine, const int32_t *tokens, uint32_t n, uint32_t want_all,
                               emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        check_pointer(tokens, "tokens");
        engine->engine->decode(tokens, n, want_all != 0);
    });
}

emoe_status emoe_engine_verify(emoe_engine *engine, const int32_t *tokens, uint32_t n, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(engine, "engine");
        check_pointer(tokens, "tokens");
        engine->engine->verify(tokens, n);
    });
}

emoe_status emoe_engine_can_verify(const emoe_engine *engine, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(engine, "engine");
        std::string const why = engine->engine->no_verify();
        if (!why.empty()) fail(EMOE_ERR_UNSUPPORTED, "this model cannot verify drafts: %s", why.c_str());
    });
}

const float *emoe_engine_logits(const emoe_engine *engine, uint32_t i) {
    return computes(engine) ? engine->engine->logits(i) : nullptr;
}

uint32_t emoe_engine_n_past(const emoe_engine *engine) { return computes(engine) ? engine->engine->n_past() : 0; }

emoe_status emoe_engine_rewind(emoe_engine *engine, uint32_t n, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        engine->engine->rewind(n);
    });
}

void emoe_engine_cancel(emoe_engine *engine) {
    if (computes(engine)) engine->engine->cancel();
}

void emoe_engine_clear_cancel(emoe_engine *engine) {
    if (computes(engine)) engine->engine->clear_cancel();
}

emoe_status emoe_engine_set_cache_bytes(emoe_engine *engine, uint64_t cache_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        engine->engine->set_cache_bytes(cache_bytes);
    });
}

emoe_status emoe_engine_get_stats(const emoe_engine *engine, emoe_stats *stats, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        check_struct(stats, "emoe_stats");
        engine->engine->stats(stats);
    });
}

uint32_t emoe_engine_resident(const emoe_engine *engine, uint32_t index) {
    return computes(engine) ? engine->engine->streamer().resident(index) : 0;
}

uint32_t emoe_engine_experts(const emoe_engine *engine, uint32_t index, uint8_t *states, uint32_t cap) {
    if (!computes(engine)) return 0;
    std::vector<uint8_t> const found = engine->engine->streamer().expert_states(index);
    if (states && found.size() <= cap) std::copy(found.begin(), found.end(), states);
    return static_cast<uint32_t>(found.size());
}

emoe_status emoe_engine_accuracy(const emoe_engine *engine, uint32_t index, emoe_accuracy *accuracy, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        check_struct(accuracy, "emoe_accuracy");
        static_assert(EMOE_MAX_DEPTH == k_max_depth, "one depth");
        Accuracy const a = engine->engine->streamer().accuracy(index);
        std::copy_n(a.n_used, k_max_depth, accuracy->n_used);
        std::copy_n(a.n_found, k_max_depth, accuracy->n_found);
    });
}

uint64_t emoe_engine_rates(const emoe_engine *engine, float *rates, uint64_t cap) {
    if (!computes(engine)) return 0;
    std::vector<float> const found = engine->engine->streamer().rates();
    if (rates && found.size() <= cap) std::copy(found.begin(), found.end(), rates);
    return found.size();
}

void emoe_engine_warm_start(emoe_engine *engine, const float *rates, uint64_t n) {
    if (computes(engine) && rates) engine->engine->streamer().warm_start(std::vector<float>(rates, rates + n));
}

emoe_status emoe_engine_trace(emoe_engine *engine, const char *path, const char *header, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        engine->engine->streamer().trace_to(path ? std::make_unique<Trace>(path, header ? header : "{}") : nullptr);
    });
}

void emoe_engine_inject_fault(emoe_engine *engine, uint32_t kind, uint64_t n) {
    if (!computes(engine)) return;
    FaultPlan &plan = engine->engine->streamer().faults();
    plan.kind.store(kind);
    plan.countdown.store(n);
}

uint64_t emoe_collect_bytes(const emoe_engine *engine, uint32_t n_sample) {
    uint64_t n = 0;
    (void)guarded(nullptr, [&] {
        check_engine(engine);
        n = Collector::bytes(engine->engine->streamer().layout(), n_sample);
    });
    return n;
}

emoe_status emoe_collect_begin(emoe_engine *engine, uint32_t n_sample, uint32_t sample_stride, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        auto made = std::make_unique<Collector>(engine->engine->streamer().layout(), n_sample, sample_stride);
        engine->engine->set_collector(made.get());
        engine->collector = std::move(made);
    });
}

void emoe_collect_end(emoe_engine *engine) {
    if (!computes(engine)) return;
    engine->engine->set_collector(nullptr);
    engine->collector.reset();
}

emoe_status emoe_collect_noise(emoe_engine *engine, uint32_t index, float share, float limit, emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        if (!engine->collector) fail(EMOE_ERR_ARGUMENT, "nothing is collected");
        if (!(share >= 0 && share <= 100)) fail(EMOE_ERR_ARGUMENT, "noise of %g times the output", double{share});
        engine->collector->set_noise(index, share, limit);
    });
}

emoe_status emoe_collect_read(const emoe_engine *engine, uint32_t index, uint32_t kind, float *out, uint64_t n,
                              emoe_error *err) {
    return guarded(err, [&] {
        check_engine(engine);
        check_pointer(out, "out");
        if (!engine->collector) fail(EMOE_ERR_ARGUMENT, "nothing is collected");
        engine->collector->read(index, kind, out, n);
    });
}

int64_t emoe_engine_tokenize(const emoe_engine *engine, const char *text, uint64_t text_bytes, uint32_t add_special,
                             uint32_t parse_special, int32_t *tokens, uint64_t cap) {
    int64_t n = -1;
    (void)guarded(nullptr, [&] {
        check_pointer(engine, "engine");
        n = tokenize(engine->text(), text, text_bytes, add_special != 0, parse_special != 0, tokens, cap);
    });
    return n;
}

int64_t emoe_engine_piece(const emoe_engine *engine, int32_t token, uint32_t special, char *buf, uint64_t cap) {
    int64_t n = -1;
    (void)guarded(nullptr, [&] {
        check_pointer(engine, "engine");
        n = piece(engine->text(), token, special != 0, buf, cap);
    });
    return n;
}

uint32_t emoe_engine_is_eog(const emoe_engine *engine, int32_t token) {
    if (!engine || token < 0 || token >= llama_vocab_n_tokens(engine->text().vocab())) return 0;
    return llama_vocab_is_eog(engine->text().vocab(), token) ? 1 : 0;
}

int32_t emoe_engine_bos(const emoe_engine *engine) { return engine ? llama_vocab_bos(engine->text().vocab()) : -1; }
int32_t emoe_engine_eos(const emoe_engine *engine) { return engine ? llama_vocab_eos(engine->text().vocab()) : -1; }

uint32_t emoe_engine_n_vocab(const emoe_engine *engine) {
    return engine ? static_cast<uint32_t>(llama_vocab_n_tokens(engine->text().vocab())) : 0;
}

uint32_t emoe_engine_n_ctx(const emoe_engine *engine) {
    return computes(engine) ? llama_n_ctx(engine->engine->context()) : 0;
}

emoe_status emoe_sampler_open(const emoe_sampler_params *params, emoe_sampler **out, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(params, "emoe_sampler_params");
        check_pointer(out, "out");
        auto sampler = std::make_unique<emoe_sampler>();
        sampler->sampler = std::make_unique<Sampler>(*params);
        *out = sampler.release();
    });
}

void emoe_sampler_close(emoe_sampler *sampler) { delete sampler; }

int32_t emoe_sampler_sample(emoe_sampler *sampler, const emoe_engine *engine, uint32_t i) {
    int32_t token = -1;
    (void)guarded(nullptr, [&] {
        if (sampler && engine) token = sampler->sampler->sample(engine->text(), i);
    });
    return token;
}

emoe_status emoe_sampler_constrain(emoe_sampler *sampler, const emoe_engine *engine, const emoe_constraint *constraint,
                                   emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(sampler, "sampler");
        check_pointer(engine, "engine");
        check_struct(constraint, "emoe_constraint");
        sampler->sampler->constrain(engine->text(), *constraint);
    });
}

emoe_status emoe_engine_logprobs(const emoe_engine *engine, uint32_t i, int32_t token, float *logprob, uint32_t n_top,
                                 int32_t *top_tokens, float *top_logprobs, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(engine, "engine");
        check_pointer(logprob, "logprob");
        if (n_top > 0) {
            check_pointer(top_tokens, "top_tokens");
            check_pointer(top_logprobs, "top_logprobs");
        }
        logprobs(engine->text(), i, token, logprob, n_top, top_tokens, top_logprobs);
    });
}

emoe_status emoe_storage_measure(const char *path, uint64_t block_bytes, uint32_t n_lane, uint64_t max_bytes,
                                 uint64_t max_ns, emoe_storage_speed *speed, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_struct(speed, "emoe_storage_speed");
        measure_storage(path, block_bytes, n_lane, max_bytes, max_ns, speed);
    });
}

emoe_status emoe_compute_measure(const char *type, uint32_t n_threads, uint64_t max_ns, uint64_t *bytes_per_s,
                                 emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(type, "type");
        check_pointer(bytes_per_s, "bytes_per_s");
        *bytes_per_s = measure_compute(type, n_threads, max_ns);
    });
}
