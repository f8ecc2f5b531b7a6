#include "base/arena.h"

#include "base/error.h"

#include <cerrno>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace emoe {

// 2 MiB: the huge page of x86-64 and of 4 KiB-page arm64.
constexpr size_t k_huge_page = size_t{2} << 20;

Arena::Arena(size_t bytes, bool huge) {
    if (bytes == 0) return;
    size_t const unit = huge ? k_huge_page : static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t const mapped = (bytes + unit - 1) / unit * unit;
    void *p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        fail(EMOE_ERR_MEMORY, "cannot reserve %zu bytes of address space: %s", mapped, os_message(errno).c_str());
    data_ = static_cast<uint8_t *>(p);
    size_ = mapped;
#ifdef MADV_HUGEPAGE
    // Experts are read front to back: huge pages save most of the TLB misses. Refusal costs speed only.
    if (huge) (void)madvise(data_, size_, MADV_HUGEPAGE);
#endif
}

Arena::~Arena() {
    if (data_) munmap(data_, size_);
}

Arena::Arena(Arena &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Arena &Arena::operator=(Arena &&other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

void release_pages(void *data, size_t bytes) {
    auto const page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    auto const begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    auto const end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
    if (begin < end) (void)madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
}

void Arena::release(size_t begin, size_t end) const {
    if (begin < end) release_pages(data_ + begin, end - begin);
}

} // namespace emoe
