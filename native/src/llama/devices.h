// What ggml computes on here: its list of devices, which of them are GPUs, backends that are libraries of their own.
#pragma once

#include <edgemoe.h>

#include <ggml-backend.h>

#include <string>

namespace emoe {

uint32_t device_count();
// Throws EMOE_ERR_ARGUMENT when there is no device i.
emoe_device_info device_info(uint32_t i);
// Registers a backend that is a library of its own (ggml's GGML_BACKEND_DL). Throws EMOE_ERR_UNSUPPORTED.
void load_backend(const std::string &path);

// The GPU that emoe_setup calls `device`, nullptr for 0. Throws EMOE_ERR_ARGUMENT for what is none.
ggml_backend_dev_t gpu_device(uint32_t device);
// Its name in llama.cpp's log, nullptr for 0; and what it calls itself.
const char *gpu_name(uint32_t device);
std::string gpu_description(uint32_t device);

} // namespace emoe
