#include "base/arena.h"

#include <utility>

namespace emoe {

Arena::Arena(Arena &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Arena &Arena::operator=(Arena &&other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

Pages whole_pages(void *begin, size_t bytes) {
    uintptr_t const page = page_size();
    uintptr_t const first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
    uintptr_t const last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
    return {reinterpret_cast<void *>(first), first < last ? last - first : 0};
}

} // namespace emoe
