// ggml's CPU backend: started here, and reached here by everything that calls its kernels.
//
// llama-cpp-python's is one library, linked, and compiled for the processor of whoever compiled it. Built into our own
// wheel (EMOE_BUNDLED) there is one library for each kind of processor; the one that ggml scores highest is loaded from
// the folder of libedgemoe, and the kernels that experts are multiplied with are those of that very library.
#pragma once

#include <ggml-cpu.h>

#include <string>

namespace emoe {

struct CpuBackend {
    decltype(&ggml_get_type_traits_cpu) type_traits;
    decltype(&ggml_graph_plan) graph_plan;
    decltype(&ggml_graph_compute) graph_compute;
    std::string name; // of the library: "ggml-cpu-haswell"
};

// Starts llama.cpp and ggml with the first call. Anything that asks ggml for devices or computes comes after it. Throws
// EMOE_ERR_UNSUPPORTED as check_processor does, and when no library of the wheel's can be loaded.
const CpuBackend &cpu();

// Whether the linked kernels are for a processor like this one. Throws EMOE_ERR_UNSUPPORTED, naming the instructions
// that are missing: the first call of one would end the process. Computes nothing.
void check_processor();

} // namespace emoe
