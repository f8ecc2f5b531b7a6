// edgemoe.h: calibration.
#include "base/guard.h"
#include "capi/handles.h"

using namespace emoe;

uint64_t emoe_collect_bytes(const emoe_engine *engine, uint32_t n_sample) {
    uint64_t n = 0;
    (void)guarded(nullptr, [&] { n = Collector::bytes(engine_of(engine).streamer().layout(), n_sample); });
    return n;
}

emoe_status emoe_collect_begin(emoe_engine *engine, uint32_t n_sample, uint32_t sample_stride, emoe_error *err) {
    return guarded(err, [&] {
        auto made = std::make_unique<Collector>(engine_of(engine).streamer().layout(), n_sample, sample_stride);
        engine_of(engine).set_collector(made.get());
        engine->collector = std::move(made);
    });
}

void emoe_collect_end(emoe_engine *engine) {
    if (!engine) return;
    engine_of(engine).set_collector(nullptr);
    engine_of(engine).set_trial(nullptr);
    engine->collector.reset();
    engine->trial.reset();
}

emoe_status emoe_collect_noise(emoe_engine *engine, uint32_t index, float share, const uint8_t *spared, uint64_t n,
                               emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(engine, "engine");
        if (!engine->collector) fail(EMOE_ERR_ARGUMENT, "nothing is collected");
        if (!(share >= 0 && share <= 100)) fail(EMOE_ERR_ARGUMENT, "noise of %g times the output", double{share});
        if (n != 0) check_pointer(spared, "spared");
        engine->collector->set_noise(index, share, spared, n);
    });
}

emoe_status emoe_collect_skip(emoe_engine *engine, const float *cost, const uint8_t *missing, uint64_t n, double limit,
                              emoe_error *err) {
    return guarded(err, [&] {
        Engine &e = engine_of(engine);
        std::unique_ptr<SkipTrial> made;
        if (n != 0) {
            check_pointer(cost, "cost");
            check_pointer(missing, "missing");
            uint64_t const known = e.streamer().layout().n_expert_total;
            if (n != known)
                fail(EMOE_ERR_ARGUMENT, "costs of %llu experts where %llu are", static_cast<unsigned long long>(n),
                     static_cast<unsigned long long>(known));
            made = std::make_unique<SkipTrial>();
            made->cost.assign(cost, cost + n);
            made->missing.assign(missing, missing + n);
            made->limit = limit;
        }
        e.set_trial(made.get());
        engine->trial = std::move(made);
    });
}

double emoe_collect_skipped(const emoe_engine *engine) { return engine && engine->trial ? engine->trial->spent : 0; }

emoe_status emoe_collect_read(const emoe_engine *engine, uint32_t index, uint32_t kind, float *out, uint64_t n,
                              emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(out, "out");
        check_pointer(engine, "engine");
        if (!engine->collector) fail(EMOE_ERR_ARGUMENT, "nothing is collected");
        engine->collector->read(index, kind, out, n);
    });
}
