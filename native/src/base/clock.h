#pragma once

#include <chrono>
#include <cstdint>

namespace emoe {

inline uint64_t now_ns() {
    auto const t = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(t).count());
}

} // namespace emoe
