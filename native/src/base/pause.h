// What a thread does between two looks at something that another one is about to change.
#pragma once

namespace emoe {

inline void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

} // namespace emoe
