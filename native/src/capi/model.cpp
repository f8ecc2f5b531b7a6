// edgemoe.h: models, their shells, what contexts of them allocate.
#include "base/guard.h"
#include "base/machine.h"
#include "base/paths.h"
#include "capi/handles.h"
#include "llama/devices.h"
#include "llama/info.h"
#include "llama/measure.h"
#include "llama/recommendation.h"
#include "llama/shell.h"
#include "llama/tier.h"
#include "store/shells.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

using namespace emoe;

namespace {

void give_path(const std::filesystem::path &path, char *buf, uint64_t cap) {
    check_pointer(buf, "path");
    std::string const text = text_of(path);
    if (text.size() + 1 > cap)
        fail(EMOE_ERR_ARGUMENT, "the path of the shell has %zu bytes, there is room for %llu", text.size(),
             static_cast<unsigned long long>(cap));
    memcpy(buf, text.c_str(), text.size() + 1);
}

} // namespace

emoe_status emoe_model_open(const char *path, emoe_model **out, emoe_error *err) {
    return emoe_model_open_with(path, nullptr, 0, out, err);
}

emoe_status emoe_model_open_with(const char *path, const char *const *override_kv, uint64_t n_override_kv,
                                 emoe_model **out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_pointer(out, "out");
        if (n_override_kv != 0) check_pointer(override_kv, "override_kv");
        std::vector<std::string> overrides;
        for (uint64_t i = 0; i < n_override_kv; i++) {
            check_pointer(override_kv[i], "override_kv");
            overrides.emplace_back(override_kv[i]);
        }
        auto model = std::make_unique<emoe_model>();
        model->index = index_model(path, overrides);
        *out = model.release();
    });
}

void emoe_model_close(emoe_model *model) {
    if (!model) return;
    delete model;
    trim_heap(); // its metadata lay in many small pieces
}

emoe_status emoe_model_get_info(const emoe_model *model, emoe_model_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(info, "emoe_model_info");
        write_struct(info, model_info(*model->index));
    });
}

emoe_status emoe_model_get_host_info(const emoe_model *model, const emoe_setup *setup, emoe_model_info *info,
                                     emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(info, "emoe_model_info");
        write_struct(info, host_info(*model->index, read_setup(setup, false)));
    });
}

emoe_status emoe_model_get_recommendation(const emoe_model *model, emoe_recommendation *recommendation,
                                          emoe_error *err) {
    return guarded(err, [&] {
        check_struct(recommendation, "emoe_recommendation");
        write_struct(recommendation, emoe::recommendation(model ? model->index.get() : nullptr));
    });
}

emoe_status emoe_model_get_layer(const emoe_model *model, uint32_t index, emoe_layer_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(info, "emoe_layer_info");
        write_struct(info, layer_info(*model->index, index));
    });
}

int64_t emoe_model_meta(const emoe_model *model, const char *key, char *buf, uint64_t buf_bytes) {
    int64_t n = -1;
    (void)guarded(nullptr, [&] {
        std::string text;
        if (!model || !key || !meta_text(model->index->meta.get(), key, &text)) return;
        if (buf && buf_bytes > 0) snprintf(buf, buf_bytes, "%s", text.c_str());
        n = static_cast<int64_t>(text.size());
    });
    return n;
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

emoe_status emoe_shell_find(const emoe_model *model, const char *cache_dir, const emoe_setup *setup, char *path,
                            uint64_t cap, uint32_t *whole, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(cache_dir, "cache_dir");
        check_pointer(whole, "whole");
        Shells const shells(*model->index, cache_dir);
        bool const wanted = shell_needs_data(read_setup(setup, false));
        *whole = !wanted || shells.whole() ? 1 : 0;
        give_path(wanted ? shells.path() : "", path, cap);
    });
}

emoe_status emoe_shell_make(const emoe_model *model, const char *cache_dir, const emoe_setup *setup, char *path,
                            uint64_t cap, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_pointer(cache_dir, "cache_dir");
        Shells const shells(*model->index, cache_dir);
        bool const wanted = shell_needs_data(read_setup(setup, false));
        if (wanted)
            shells.make();
        else
            shells.note_use();
        give_path(wanted ? shells.path() : "", path, cap);
    });
}

emoe_status emoe_context_measure(const emoe_model *model, const char *shell_path, const emoe_setup *setup,
                                 emoe_context_sizes *sizes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(model, "model");
        check_struct(sizes, "emoe_context_sizes");
        write_struct(sizes, measure_context(*model->index, shell_path ? shell_path : "", read_setup(setup, true)));
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
