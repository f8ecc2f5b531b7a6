#include "base/arena.h"

#include "base/error.h"

#include <cerrno>
#include <sys/mman.h>
#include <unistd.h>

namespace emoe {

namespace {

// 2 MiB: the huge page of x86-64 and of 4 KiB-page arm64.
constexpr size_t k_huge_page = size_t{2} << 20;

constexpr int k_reserved = MAP_PRIVATE | MAP_ANON | MAP_NORESERVE;

} // namespace

size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

Arena::Arena(size_t bytes, bool huge, bool) {
    if (bytes == 0) return;
    size_t const unit = huge ? k_huge_page : page_size();
    size_t const mapped = (bytes + unit - 1) / unit * unit;
    void *p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, k_reserved, -1, 0);
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

void Arena::keep(size_t bytes) const {
    if (bytes < size_) discard_pages(data_ + bytes, size_ - bytes);
}

void Arena::release() const { keep(0); }

void discard_pages(void *data, size_t bytes) {
    Pages const pages = whole_pages(data, bytes);
    if (pages.bytes == 0) return;
#ifdef __linux__
    (void)madvise(pages.begin, pages.bytes, MADV_DONTNEED); // gone now, and zero
#else
    // The word is a hint elsewhere, and a Mac's footprint stays as it was. New pages in their place are none.
    (void)mmap(pages.begin, pages.bytes, PROT_READ | PROT_WRITE, k_reserved | MAP_FIXED, -1, 0);
#endif
}

void drop_mapped_pages(void *data, size_t bytes) {
    Pages const pages = whole_pages(data, bytes);
    if (pages.bytes != 0) (void)madvise(pages.begin, pages.bytes, MADV_DONTNEED);
}

} // namespace emoe
