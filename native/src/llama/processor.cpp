// What the linked ggml-cpu was compiled to use, and whether this processor has it. ggml's own questions answer with
// constants; none of this runs an instruction that is not in every processor of its kind.
#ifndef EMOE_BUNDLED

#include "llama/cpu.h"

#include "base/error.h"

#include <cstdint>
#include <string>
#include <vector>

#if defined(__x86_64__) && __has_include(<cpuid.h>)
#define EMOE_X86
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#define EMOE_ARM_LINUX
#include <sys/auxv.h>
#endif

namespace emoe {

namespace {

struct Feature {
    const char *name;
    int (*compiled)(void);
    bool here;
};

#ifdef EMOE_X86

struct Leaf {
    uint32_t a = 0, b = 0, c = 0, d = 0;
    Leaf(uint32_t leaf, uint32_t sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

// Which registers the system saves (XCR0): without them a processor's wide instructions fault.
uint32_t saved_registers(const Leaf &one) {
    if ((one.c & (1u << 27)) == 0) return 0; // no OSXSAVE
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has(uint32_t word, int bit) { return (word >> bit & 1) != 0; }

std::vector<Feature> features() {
    Leaf const one(1, 0), seven(7, 0), more(7, 1);
    uint32_t const saved = saved_registers(one);
    bool const ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    bool const f512 = zmm && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 28) && has(seven.b, 30) &&
                      has(seven.b, 31); // F, DQ, CD, BW, VL: compilers use them together
    return {
        {"SSE3", ggml_cpu_has_sse3, has(one.c, 0)},
        {"SSSE3", ggml_cpu_has_ssse3, has(one.c, 9)},
        {"AVX", ggml_cpu_has_avx, ymm && has(one.c, 28)},
        {"F16C", ggml_cpu_has_f16c, ymm && has(one.c, 29)},
        {"FMA", ggml_cpu_has_fma, ymm && has(one.c, 12)},
        {"BMI2", ggml_cpu_has_bmi2, has(seven.b, 8)},
        {"AVX2", ggml_cpu_has_avx2, ymm && has(seven.b, 5)},
        {"AVX-VNNI", ggml_cpu_has_avx_vnni, ymm && has(more.a, 4)},
        {"AVX-512", ggml_cpu_has_avx512, f512},
        {"AVX-512 VBMI", ggml_cpu_has_avx512_vbmi, f512 && has(seven.c, 1)},
        {"AVX-512 VNNI", ggml_cpu_has_avx512_vnni, f512 && has(seven.c, 11)},
        {"AVX-512 BF16", ggml_cpu_has_avx512_bf16, f512 && has(more.a, 5)},
        {"AMX-INT8", ggml_cpu_has_amx_int8, tiles && has(seven.d, 25)},
    };
}

#elif defined(EMOE_ARM_LINUX)

std::vector<Feature> features() {
    unsigned long const first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    return {
        {"FP16", ggml_cpu_has_fp16_va, (first >> 10 & 1) != 0},
        {"DotProd", ggml_cpu_has_dotprod, (first >> 20 & 1) != 0},
        {"SVE", ggml_cpu_has_sve, (first >> 22 & 1) != 0},
        {"I8MM", ggml_cpu_has_matmul_int8, (second >> 13 & 1) != 0},
        {"SME", ggml_cpu_has_sme, (second >> 23 & 1) != 0},
    };
}

#else

std::vector<Feature> features() {
    return {}; // where nobody asks for more than every processor has
}

#endif

} // namespace

void check_processor() {
    std::string missing;
    for (Feature const &f : features())
        if (f.compiled() && !f.here) missing += (missing.empty() ? "" : ", ") + std::string(f.name);
    if (!missing.empty())
        fail(EMOE_ERR_UNSUPPORTED,
             "llama.cpp was compiled for another processor: its kernels use %s, which this one does not have",
             missing.c_str());
}

} // namespace emoe

#endif
