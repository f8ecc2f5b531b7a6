// What ggml computes on here: its device list, as data.
#include "base/error.h"
#include "base/guard.h"
#include "llama/gpu.h"

#include <edgemoe.h>

#include <ggml-backend.h>

#include <cstdio>

namespace {

uint32_t kind_of(ggml_backend_dev_t device) {
    switch (ggml_backend_dev_type(device)) {
    case GGML_BACKEND_DEVICE_TYPE_GPU: return EMOE_DEVICE_GPU;
    case GGML_BACKEND_DEVICE_TYPE_IGPU: return EMOE_DEVICE_IGPU;
    case GGML_BACKEND_DEVICE_TYPE_CPU: return EMOE_DEVICE_CPU;
    default: return EMOE_DEVICE_ACCELERATOR;
    }
}

} // namespace

uint32_t emoe_device_count(void) { return static_cast<uint32_t>(ggml_backend_dev_count()); }

emoe_status emoe_device_get(uint32_t i, emoe_device_info *info, emoe_error *err) {
    using namespace emoe;
    return guarded(err, [&] {
        check_struct(info, "emoe_device_info");
        if (i >= ggml_backend_dev_count())
            fail(EMOE_ERR_ARGUMENT, "there is no device %u: there are %zu", i, ggml_backend_dev_count());
        ggml_backend_dev_t const device = ggml_backend_dev_get(i);
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        emoe_device_info found = {};
        found.kind = kind_of(device);
        found.free_bytes = free;
        found.total_bytes = total;
        ggml_backend_reg_t const reg = ggml_backend_dev_backend_reg(device);
        snprintf(found.backend, sizeof found.backend, "%s", reg ? ggml_backend_reg_name(reg) : "");
        snprintf(found.name, sizeof found.name, "%s", ggml_backend_dev_name(device));
        snprintf(found.description, sizeof found.description, "%s", ggml_backend_dev_description(device));
        write_struct(info, found);
    });
}

emoe_status emoe_backend_load(const char *path, emoe_error *err) {
    using namespace emoe;
    return guarded(err, [&] {
        check_pointer(path, "path");
        load_backend(path);
    });
}
