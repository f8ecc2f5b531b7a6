#include "base/error.h"
#include "base/windows.h"
#include "io/file.h"

#include <algorithm>
#include <cerrno>

namespace emoe {

namespace {

constexpr uint32_t k_alignment = 4096; // no drive has larger sectors

HANDLE handle_of(intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

// Overlapped although each read is waited for: on a synchronous handle the system lets one read pass at a time, whatever
// the number of threads.
intptr_t open_shared(const std::string &path, DWORD flags) {
    return reinterpret_cast<intptr_t>(CreateFileW(wide(path).c_str(), GENERIC_READ,
                                                  FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                                                  OPEN_EXISTING, flags | FILE_FLAG_OVERLAPPED, nullptr));
}

// One event a thread: a read waits for its own.
HANDLE thread_event() {
    struct Event {
        HANDLE handle = CreateEventW(nullptr, TRUE, FALSE, nullptr);
        ~Event() { CloseHandle(handle); }
    };
    static thread_local Event const event;
    return event.handle;
}

int64_t ns_of(const FILETIME &time) { // since 1601
    return static_cast<int64_t>((uint64_t{time.dwHighDateTime} << 32 | time.dwLowDateTime) * 100);
}

bool stamp_of(HANDLE handle, FileStamp *stamp) {
    BY_HANDLE_FILE_INFORMATION info;
    FILE_BASIC_INFO basic;
    if (!GetFileInformationByHandle(handle, &info)) return false;
    stamp->size = uint64_t{info.nFileSizeHigh} << 32 | info.nFileSizeLow;
    stamp->inode = uint64_t{info.nFileIndexHigh} << 32 | info.nFileIndexLow;
    stamp->n_link = info.nNumberOfLinks;
    stamp->modified_ns = stamp->changed_ns = ns_of(info.ftLastWriteTime);
    if (GetFileInformationByHandleEx(handle, FileBasicInfo, &basic, sizeof basic))
        stamp->changed_ns = static_cast<int64_t>(basic.ChangeTime.QuadPart * 100);
    return true;
}

} // namespace

bool stamp_of(const std::string &path, FileStamp *stamp) {
    intptr_t const handle = open_shared(path, 0);
    if (handle == -1) return false;
    bool const known = stamp_of(handle_of(handle), stamp);
    CloseHandle(handle_of(handle));
    return known;
}

File::File(const std::string &path, FileAccess access) : path_(path), keeps_(access == FileAccess::page_cache) {
    DWORD const attributes = GetFileAttributesW(wide(path).c_str());
    if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY))
        fail(EMOE_ERR_IO, "`%s` is not a file", path.c_str());
    if (access == FileAccess::direct) {
        handle_ = open_shared(path, FILE_FLAG_NO_BUFFERING);
        direct_ = handle_ != -1;
        if (direct_) alignment_ = k_alignment;
    }
    if (handle_ == -1) handle_ = open_shared(path, FILE_FLAG_RANDOM_ACCESS);
    if (handle_ == -1)
        fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno_of(GetLastError())).c_str());
    accept();
    size_ = stamp_.size;
}

File::~File() {
    if (handle_ != -1) CloseHandle(handle_of(handle_));
}

bool File::stamp(FileStamp *stamp) const { return stamp_of(handle_of(handle_), stamp); }

int64_t File::read(void *dst, size_t bytes, uint64_t offset) const {
    OVERLAPPED at = {};
    at.Offset = static_cast<DWORD>(offset);
    at.OffsetHigh = static_cast<DWORD>(offset >> 32);
    at.hEvent = thread_event();
    DWORD n = 0;
    auto const want = static_cast<DWORD>(std::min<size_t>(bytes, size_t{1} << 30));
    if (!ReadFile(handle_of(handle_), dst, want, nullptr, &at) && GetLastError() != ERROR_IO_PENDING) {
        DWORD const e = GetLastError();
        return e == ERROR_HANDLE_EOF ? 0 : -errno_of(e);
    }
    if (!GetOverlappedResult(handle_of(handle_), &at, &n, TRUE)) {
        DWORD const e = GetLastError();
        return e == ERROR_HANDLE_EOF ? 0 : -errno_of(e);
    }
    return n;
}

void File::drop(uint64_t, uint64_t) const {} // nobody can be told

} // namespace emoe
