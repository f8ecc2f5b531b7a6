// edgemoe.h: engines.
#include "base/guard.h"
#include "base/machine.h"
#include "capi/handles.h"

#include <algorithm>

using namespace emoe;

emoe_status emoe_engine_open(const emoe_model *model, const char *shell_path, const emoe_setup *setup,
                             uint64_t cache_bytes, emoe_engine **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(out, "out");
        emoe_setup const s = read_setup(setup, true);
        auto engine = std::make_unique<emoe_engine>();
        engine->engine = std::make_unique<Engine>(*model->index, shell_path ? shell_path : "", s, cache_bytes);
        engine->texts.resize(engine->engine->n_sequence());
        for (uint32_t i = 0; i < engine->texts.size(); i++) engine->texts[i].model = &engine->engine->text(i);
        *out = engine.release();
    });
}

void emoe_engine_close(emoe_engine *engine) {
    if (!engine) return;
    delete engine;
    trim_heap(); // the vocabulary lay in many small pieces
}

emoe_status emoe_engine_decode(emoe_engine *engine, const int32_t *tokens, uint32_t n, uint32_t want_all,
                               emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(tokens, "tokens");
        engine_of(engine).decode(tokens, n, want_all != 0);
    });
}

emoe_status emoe_engine_verify(emoe_engine *engine, const int32_t *tokens, uint32_t n, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(tokens, "tokens");
        engine_of(engine).verify(tokens, n);
    });
}

emoe_status emoe_engine_can_verify(const emoe_engine *engine, emoe_error *err) {
    return guarded(err, [&] {
        std::string const why = engine_of(engine).no_verify();
        if (!why.empty()) fail(EMOE_ERR_UNSUPPORTED, "this model cannot verify drafts: %s", why.c_str());
    });
}

emoe_status emoe_engine_select(emoe_engine *engine, uint32_t sequence, emoe_error *err) {
    return guarded(err, [&] { engine_of(engine).select(sequence); });
}

emoe_status emoe_engine_step(emoe_engine *engine, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                             emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(sequences, "sequences");
        check_pointer(tokens, "tokens");
        engine_of(engine).step(sequences, tokens, n);
    });
}

uint32_t emoe_engine_n_past(const emoe_engine *engine) { return engine ? engine_of(engine).n_past() : 0; }

emoe_status emoe_engine_rewind(emoe_engine *engine, uint32_t n, emoe_error *err) {
    return guarded(err, [&] { engine_of(engine).rewind(n); });
}

uint32_t emoe_engine_can_cut(const emoe_engine *engine) { return engine && engine_of(engine).can_cut() ? 1 : 0; }

uint64_t emoe_engine_state_key(const emoe_engine *engine) {
    uint64_t key = 0;
    (void)guarded(nullptr, [&] { key = engine_of(engine).state_key(); });
    return key;
}

namespace {

uint64_t state_bytes(emoe_engine *engine, StatePart part) {
    uint64_t n = 0;
    (void)guarded(nullptr, [&] { n = engine_of(engine).state_bytes(part); });
    return n;
}

emoe_status state_get(emoe_engine *engine, StatePart part, void *buf, uint64_t cap, uint64_t *n_bytes,
                      emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(buf, "buf");
        check_pointer(n_bytes, "n_bytes");
        *n_bytes = engine_of(engine).get_state(part, static_cast<uint8_t *>(buf), cap);
    });
}

emoe_status state_set(emoe_engine *engine, StatePart part, const void *buf, uint64_t n_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(buf, "buf");
        engine_of(engine).set_state(part, static_cast<const uint8_t *>(buf), n_bytes);
    });
}

} // namespace

uint64_t emoe_engine_state_bytes(emoe_engine *engine) { return state_bytes(engine, StatePart::whole); }

emoe_status emoe_engine_state_get(emoe_engine *engine, void *buf, uint64_t cap, uint64_t *n_bytes, emoe_error *err) {
    return state_get(engine, StatePart::whole, buf, cap, n_bytes, err);
}

emoe_status emoe_engine_state_set(emoe_engine *engine, const void *buf, uint64_t n_bytes, emoe_error *err) {
    return state_set(engine, StatePart::whole, buf, n_bytes, err);
}

uint64_t emoe_engine_checkpoint_bytes(emoe_engine *engine) { return state_bytes(engine, StatePart::checkpoint); }

emoe_status emoe_engine_checkpoint_get(emoe_engine *engine, void *buf, uint64_t cap, uint64_t *n_bytes,
                                       emoe_error *err) {
    return state_get(engine, StatePart::checkpoint, buf, cap, n_bytes, err);
}

emoe_status emoe_engine_checkpoint_set(emoe_engine *engine, const void *buf, uint64_t n_bytes, emoe_error *err) {
    return state_set(engine, StatePart::checkpoint, buf, n_bytes, err);
}

void emoe_engine_cancel(emoe_engine *engine) {
    if (engine) engine_of(engine).cancel();
}

void emoe_engine_clear_cancel(emoe_engine *engine) {
    if (engine) engine_of(engine).clear_cancel();
}

emoe_status emoe_engine_set_cache_bytes(emoe_engine *engine, uint64_t cache_bytes, emoe_error *err) {
    return guarded(err, [&] { engine_of(engine).set_cache_bytes(cache_bytes); });
}

emoe_status emoe_engine_get_stats(const emoe_engine *engine, emoe_stats *stats, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(stats, "emoe_stats");
        write_struct(stats, engine_of(engine).stats());
    });
}

uint32_t emoe_engine_resident(const emoe_engine *engine, uint32_t index) {
    uint32_t n = 0;
    (void)guarded(nullptr, [&] { n = engine_of(engine).streamer().n_cached(index); });
    return n;
}

uint32_t emoe_engine_experts(const emoe_engine *engine, uint32_t index, uint8_t *states, uint32_t cap) {
    uint32_t n = 0;
    (void)guarded(nullptr, [&] {
        n = static_cast<uint32_t>(copy_out(engine_of(engine).streamer().expert_states(index), states, cap));
    });
    return n;
}

emoe_status emoe_engine_accuracy(const emoe_engine *engine, uint32_t index, emoe_accuracy *accuracy, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(accuracy, "emoe_accuracy");
        static_assert(EMOE_MAX_DEPTH == k_max_depth, "one depth");
        Accuracy const a = engine_of(engine).streamer().accuracy(index);
        emoe_accuracy found = {};
        std::copy_n(a.n_used, k_max_depth, found.n_used);
        std::copy_n(a.n_found, k_max_depth, found.n_found);
        write_struct(accuracy, found);
    });
}

uint64_t emoe_engine_rates(const emoe_engine *engine, float *rates, uint64_t cap) {
    uint64_t n = 0;
    (void)guarded(nullptr, [&] { n = copy_out(engine_of(engine).streamer().rates(), rates, cap); });
    return n;
}

void emoe_engine_warm_start(emoe_engine *engine, const float *rates, uint64_t n) {
    (void)guarded(nullptr, [&] {
        Streamer &streamer = engine_of(engine).streamer();
        if (rates && n == streamer.layout().n_expert_total) streamer.warm_start(std::vector<float>(rates, rates + n));
    });
}

emoe_status emoe_engine_trace(emoe_engine *engine, const char *path, const char *header, emoe_error *err) {
    return guarded(err, [&] {
        engine_of(engine).streamer().trace_to(path ? std::make_unique<Trace>(path, header ? header : "{}") : nullptr);
    });
}

void emoe_engine_inject_fault(emoe_engine *engine, uint32_t kind, uint64_t n) {
    if (!engine) return;
    Faults &faults = engine_of(engine).streamer().faults();
    faults.kind.store(kind);
    faults.countdown.store(n);
}

emoe_text *emoe_engine_text(const emoe_engine *engine) { return emoe_engine_sequence_text(engine, 0); }

emoe_text *emoe_engine_sequence_text(const emoe_engine *engine, uint32_t sequence) {
    return engine && sequence < engine->texts.size() ? &engine->texts[sequence] : nullptr;
}

uint32_t emoe_engine_n_ctx(const emoe_engine *engine) { return engine ? engine_of(engine).n_ctx() : 0; }
