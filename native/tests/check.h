// CHECK for native tests: prints where and what, counts, and main() returns the count.
#pragma once

#include <cstdio>

inline int g_failures = 0;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                  \
            g_failures++;                                                                                              \
        }                                                                                                              \
    } while (0)

#define CHECK_EQ(a, b)                                                                                                 \
    do {                                                                                                               \
        auto const a_ = (a);                                                                                           \
        auto const b_ = (b);                                                                                           \
        if (!(a_ == b_)) {                                                                                             \
            fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #a, static_cast<long long>(a_),       \
                    static_cast<long long>(b_));                                                                       \
            g_failures++;                                                                                              \
        }                                                                                                              \
    } while (0)
