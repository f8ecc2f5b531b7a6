// What a context will allocate, asked of llama.cpp without allocating it (no_alloc), and of ourselves.
#pragma once

#include "llama/index.h"

#include <edgemoe.h>

#include <llama.h>

namespace emoe {

// The parameters common to measuring and opening.
llama_model_params model_params();
llama_context_params context_params(const emoe_context_params &params);

// Sizes of the buffers that llama.cpp reported in its log while a context was made.
struct ContextBuffers {
    uint64_t kv_bytes = 0;
    uint64_t compute_bytes = 0;
    uint64_t output_bytes = 0;
};
ContextBuffers parse_buffers(const std::string &log);

void measure_context(const ModelIndex &index, const std::string &shell_path, const emoe_context_params &params,
                     emoe_context_sizes *sizes);

// Resident bytes of this process, 0 where unknown.
uint64_t resident_bytes();

} // namespace emoe
