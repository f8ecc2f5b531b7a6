// What handles_test.cpp and handles_gguf.cpp share: values that mean nothing, and checks of what comes of them.
#pragma once

#include "check.h"

#include <edgemoe.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

inline constexpr uint32_t k_garbage = 0xDEADBEEF;
inline constexpr uint64_t k_huge = UINT64_MAX;
inline const char *const k_nowhere = "/nonexistent/edgemoe";

inline emoe_error g_err;

// The call fails, with a sentence in err.
#define REFUSED(call)                                                                                                  \
    do {                                                                                                               \
        g_err.message[0] = 0;                                                                                          \
        CHECK((call) != EMOE_OK);                                                                                      \
        CHECK(g_err.message[0] != 0);                                                                                  \
    } while (0)
#define REFUSED_AS(call, status)                                                                                       \
    do {                                                                                                               \
        g_err.message[0] = 0;                                                                                          \
        CHECK_EQ((call), status);                                                                                      \
        CHECK(g_err.message[0] != 0);                                                                                  \
    } while (0)
#define GIVEN(call)                                                                                                    \
    do {                                                                                                               \
        emoe_status const status_ = (call);                                                                            \
        CHECK_EQ(status_, EMOE_OK);                                                                                    \
        if (status_ != EMOE_OK) fprintf(stderr, "  %s\n", g_err.message);                                              \
    } while (0)

template <typename T>
T zeros() {
    T t = {};
    t.struct_size = sizeof t;
    return t;
}

// A call that takes a T refuses null, no size, a size without the size field, and more bytes than the library knows.
template <typename T>
void wrong_sizes(const std::function<emoe_status(T *)> &call, T good = zeros<T>()) {
    REFUSED_AS(call(nullptr), EMOE_ERR_ARGUMENT);
    for (uint32_t const size : {0u, 3u, static_cast<uint32_t>(sizeof(T)) + 8, UINT32_MAX}) {
        T wrong = good;
        wrong.struct_size = size;
        REFUSED_AS(call(&wrong), EMOE_ERR_ARGUMENT);
    }
}

inline emoe_setup shaped() {
    auto s = zeros<emoe_setup>();
    s.n_ctx = 256;
    s.n_ubatch = 32;
    s.n_threads = 1;
    return s;
}

// Setups of which a field means nothing.
inline std::vector<emoe_setup> garbage_setups() {
    std::vector<emoe_setup> all;
    auto const with = [&all](auto &&set) {
        emoe_setup s = shaped();
        s.memory = uint64_t{1} << 30;
        set(s);
        all.push_back(s);
    };
    with([](emoe_setup &s) { s.memory_kind = k_garbage; });
    with([](emoe_setup &s) { s.kv_type = k_garbage; });
    with([](emoe_setup &s) { s.policy = k_garbage; });
    with([](emoe_setup &s) { s.prefetch = k_garbage; });
    with([](emoe_setup &s) { s.reader = k_garbage; });
    with([](emoe_setup &s) { s.n_threads = k_garbage; });
    with([](emoe_setup &s) { s.n_read_lane = k_garbage; });
    with([](emoe_setup &s) { s.n_gpu_expert = 3; });
    with([](emoe_setup &s) { s.n_sequence = EMOE_MAX_SEQUENCE + 1; });
    with([](emoe_setup &s) {
        s.memory_kind = EMOE_BUDGET_SHARE;
        s.memory = k_huge;
    });
    return all;
}

// handles_gguf.cpp: the same with handles of a model. folder: for its shell.
void handles_of(const char *gguf, const char *folder);
