// edgemoe.h: plans, predictions, allowances.
#include "base/guard.h"
#include "budget/allowance.h"
#include "budget/planner.h"
#include "budget/predict.h"
#include "capi/handles.h"
#include "store/plan.h"

using namespace emoe;

struct emoe_allowance {
    std::unique_ptr<Allowance> allowance;
};

namespace {

// As guarded; tells what would do when a budget is too small.
template <typename F>
emoe_status guarded_budget(uint64_t *smallest, emoe_error *err, F &&f) {
    return guarded(err, [&] {
        try {
            f();
        } catch (const BudgetError &e) {
            if (smallest) *smallest = e.smallest_bytes;
            throw;
        }
    });
}

Allowance &allowance_of(const emoe_allowance *allowance) {
    check_pointer(allowance, "allowance");
    return *allowance->allowance;
}

// A model as a host describes it.
emoe_model_info read_info(const emoe_model_info *info) {
    emoe_model_info model = read_struct(info, "emoe_model_info");
    if (model.slot_bytes == 0) fail(EMOE_ERR_ARGUMENT, "a model without experts");
    model.name[sizeof model.name - 1] = 0;
    return model;
}

// A failure of the host's own callback: it knows what went wrong.
void check_callback(emoe_status status) {
    if (status != EMOE_OK) throw Error(status, "the host's callback failed");
}

} // namespace

emoe_status emoe_plan_make(const emoe_model *model, const char *cache_dir, const emoe_setup *setup, emoe_plan *plan,
                           emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(cache_dir, "cache_dir");
        check_struct(plan, "emoe_plan");
        emoe_setup const s = read_setup(setup, false);
        write_plan(plan, [&](emoe_plan *known) { return plan_gguf(*model->index, cache_dir, s, known); });
    });
}

emoe_status emoe_plan_choose(const emoe_model_info *info, emoe_sizes_fn sizes, void *user, const emoe_setup *setup,
                             emoe_plan *plan, emoe_error *err) {
    return guarded(err, [&] {
        emoe_model_info const model = read_info(info);
        if (!sizes) fail(EMOE_ERR_ARGUMENT, "sizes is null");
        check_struct(plan, "emoe_plan");
        emoe_setup const s = read_setup(setup, false);
        Sizes const ask = [&](uint32_t n_ctx, uint32_t n_ubatch) {
            emoe_context_sizes found = {};
            found.struct_size = sizeof found;
            check_callback(sizes(user, n_ctx, n_ubatch, &found));
            return found;
        };
        write_plan(plan, [&](emoe_plan *known) { return plan_with(model, ask, s, s.process_bytes, known); });
    });
}

emoe_status emoe_budget_bytes(uint32_t memory_kind, uint64_t memory, uint64_t resident_bytes, uint64_t *bytes,
                              emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(bytes, "bytes");
        check_memory(memory_kind, memory);
        *bytes = budget_bytes(memory_kind, memory, resident_bytes, machine());
    });
}

uint64_t emoe_margin_bytes(uint64_t budget_bytes) { return margin_bytes(budget_bytes); }

emoe_status emoe_plan_predict(const emoe_model_info *info, double fraction, const emoe_speeds *speeds,
                              emoe_prediction *prediction, emoe_error *err) {
    return guarded(err, [&] {
        emoe_model_info const model = read_struct(info, "emoe_model_info");
        emoe_speeds const s = read_struct(speeds, "emoe_speeds");
        check_struct(prediction, "emoe_prediction");
        if (!(fraction >= 0 && fraction <= 1)) fail(EMOE_ERR_ARGUMENT, "%g of the experts", fraction);
        if (!(s.disk_bytes_per_s > 0 && s.compute_bytes_per_s > 0))
            fail(EMOE_ERR_ARGUMENT, "speeds of %g and %g bytes a second", s.disk_bytes_per_s, s.compute_bytes_per_s);
        write_struct(prediction, predict(model, fraction, s));
    });
}

double emoe_plan_hit_rate(double fraction) { return hit_rate(fraction); }

emoe_status emoe_allowance_open(const emoe_plan *plan, const emoe_model_info *info, uint64_t untouched_bytes,
                                emoe_resize_fn resize, emoe_resident_fn resident, void *user, emoe_allowance **out,
                                uint64_t *smallest, emoe_error *err) {
    return guarded_budget(smallest, err, [&] {
        check_pointer(out, "out");
        if (!resize) fail(EMOE_ERR_ARGUMENT, "resize is null");
        auto made = std::make_unique<emoe_allowance>();
        made->allowance = std::make_unique<Allowance>(
            read_struct(plan, "emoe_plan"), read_info(info), untouched_bytes,
            [resize, user](uint64_t bytes) { check_callback(resize(user, bytes)); },
            resident ? Allowance::Resident([resident, user] { return resident(user); }) : rss_bytes);
        *out = made.release();
    });
}

void emoe_allowance_close(emoe_allowance *allowance) { delete allowance; }

emoe_status emoe_allowance_get_plan(const emoe_allowance *allowance, emoe_plan *plan, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(plan, "emoe_plan");
        write_struct(plan, allowance_of(allowance).plan());
    });
}

emoe_status emoe_allowance_spend(emoe_allowance *allowance, uint64_t budget_bytes, uint64_t *smallest,
                                 emoe_error *err) {
    return guarded_budget(smallest, err, [&] { allowance_of(allowance).spend(budget_bytes); });
}

emoe_status emoe_allowance_check(emoe_allowance *allowance, emoe_error *err) {
    return guarded(err, [&] { allowance_of(allowance).check(); });
}

emoe_status emoe_allowance_give_way(emoe_allowance *allowance, uint64_t n_bytes, const char *what, uint64_t *before,
                                    uint64_t *smallest, emoe_error *err) {
    return guarded_budget(smallest, err, [&] {
        check_pointer(what, "what");
        check_pointer(before, "before");
        *before = allowance_of(allowance).give_way(n_bytes, what);
    });
}

emoe_status emoe_allowance_take_back(emoe_allowance *allowance, uint64_t before, uint64_t n_bytes, emoe_error *err) {
    return guarded(err, [&] { allowance_of(allowance).take_back(before, n_bytes); });
}
