#include "llama/devices.h"

#include "base/error.h"
#include "llama/cpu.h"

#include <cstdio>

namespace emoe {

namespace {

uint32_t kind_of(ggml_backend_dev_t device) {
    switch (ggml_backend_dev_type(device)) {
    case GGML_BACKEND_DEVICE_TYPE_GPU: return EMOE_DEVICE_GPU;
    case GGML_BACKEND_DEVICE_TYPE_IGPU: return EMOE_DEVICE_IGPU;
    case GGML_BACKEND_DEVICE_TYPE_CPU: return EMOE_DEVICE_CPU;
    default: return EMOE_DEVICE_ACCELERATOR;
    }
}

ggml_backend_dev_t device_at(uint32_t i) {
    (void)cpu();
    if (i >= ggml_backend_dev_count())
        fail(EMOE_ERR_ARGUMENT, "there is no device %u: there are %zu", i, ggml_backend_dev_count());
    return ggml_backend_dev_get(i);
}

} // namespace

uint32_t device_count() {
    (void)cpu();
    return static_cast<uint32_t>(ggml_backend_dev_count());
}

emoe_device_info device_info(uint32_t i) {
    ggml_backend_dev_t const device = device_at(i);
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    emoe_device_info info = {};
    info.struct_size = sizeof info;
    info.kind = kind_of(device);
    info.free_bytes = free;
    info.total_bytes = total;
    ggml_backend_reg_t const reg = ggml_backend_dev_backend_reg(device);
    snprintf(info.backend, sizeof info.backend, "%s", reg ? ggml_backend_reg_name(reg) : "");
    snprintf(info.name, sizeof info.name, "%s", ggml_backend_dev_name(device));
    snprintf(info.description, sizeof info.description, "%s", ggml_backend_dev_description(device));
    return info;
}

void load_backend(const std::string &path) {
    (void)cpu();
#ifdef EMOE_BUNDLED // its libraries have names of their own, which other people's backends do not link
    fail(EMOE_ERR_UNSUPPORTED,
         "`%s` cannot be used: this edgemoe has its own llama.cpp, which computes on the CPU only", path.c_str());
#endif
    if (!ggml_backend_load(path.c_str()))
        fail(EMOE_ERR_UNSUPPORTED, "`%s` is not a backend of this ggml (%s)", path.c_str(), ggml_version());
}

ggml_backend_dev_t gpu_device(uint32_t device) {
    if (device == 0) return nullptr;
    ggml_backend_dev_t const dev = device_at(device - 1);
    uint32_t const kind = kind_of(dev);
    if (kind != EMOE_DEVICE_GPU && kind != EMOE_DEVICE_IGPU)
        fail(EMOE_ERR_ARGUMENT, "device %u, `%s`, is no GPU", device - 1, ggml_backend_dev_name(dev));
    return dev;
}

const char *gpu_name(uint32_t device) { return device == 0 ? nullptr : ggml_backend_dev_name(gpu_device(device)); }

std::string gpu_description(uint32_t device) { return ggml_backend_dev_description(gpu_device(device)); }

} // namespace emoe
