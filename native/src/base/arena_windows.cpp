#include "base/arena.h"

#include "base/error.h"
#include "base/windows.h"

namespace emoe {

size_t page_size() {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

// Windows counts what may be used against its own limit and a job's, touched or not: of the expert cache that is what
// keep() names.
Arena::Arena(size_t bytes, bool, bool usable) {
    if (bytes == 0) return;
    size_t const unit = size_t{64} << 10; // of address space
    size_t const mapped = (bytes + unit - 1) / unit * unit;
    void *p = VirtualAlloc(nullptr, mapped, usable ? MEM_RESERVE | MEM_COMMIT : MEM_RESERVE, PAGE_READWRITE);
    if (!p)
        fail(EMOE_ERR_MEMORY, "cannot reserve %llu bytes of address space: %s", static_cast<unsigned long long>(mapped),
             windows_message(GetLastError()).c_str());
    data_ = static_cast<uint8_t *>(p);
    size_ = mapped;
}

Arena::~Arena() {
    if (data_) VirtualFree(data_, 0, MEM_RELEASE);
}

void Arena::keep(size_t bytes) const {
    if (bytes < size_) {
        Pages const rest = whole_pages(data_ + bytes, size_ - bytes);
        if (rest.bytes != 0) VirtualFree(rest.begin, rest.bytes, MEM_DECOMMIT);
    }
    if (bytes != 0 && !VirtualAlloc(data_, bytes, MEM_COMMIT, PAGE_READWRITE))
        fail(EMOE_ERR_MEMORY, "cannot commit %llu bytes: %s", static_cast<unsigned long long>(bytes),
             windows_message(GetLastError()).c_str());
}

void Arena::release() const {
    if (size_ != 0) discard_pages(data_, size_);
}

// They stay committed and leave the working set.
void discard_pages(void *data, size_t bytes) {
    static auto const discard =
        reinterpret_cast<DWORD(WINAPI *)(PVOID, SIZE_T)>(system_function(L"kernel32.dll", "DiscardVirtualMemory"));
    Pages const pages = whole_pages(data, bytes);
    if (pages.bytes == 0) return;
    if (!discard || discard(pages.begin, pages.bytes) != ERROR_SUCCESS) // before Windows 8.1
        (void)VirtualAlloc(pages.begin, pages.bytes, MEM_RESET, PAGE_READWRITE);
    (void)VirtualUnlock(pages.begin, pages.bytes);
}

// Pages that are unlocked without having been locked leave the working set: so it is documented.
void drop_mapped_pages(void *data, size_t bytes) {
    Pages const pages = whole_pages(data, bytes);
    if (pages.bytes != 0) (void)VirtualUnlock(pages.begin, pages.bytes);
}

} // namespace emoe
