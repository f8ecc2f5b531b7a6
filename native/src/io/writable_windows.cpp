#include "base/error.h"
#include "base/windows.h"
#include "io/writable.h"

#include <algorithm>
#include <atomic>
#include <winioctl.h>

namespace emoe {

namespace {

[[noreturn]] void cannot_write(const std::string &path, DWORD error) {
    fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), windows_message(error).c_str());
}

HANDLE handle_of(intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

// Nobody else may read what is locked: the lock lies far behind the end of any file.
constexpr DWORD k_lock_high = 0x40000000;

// Not DELETE among the rights: llama.cpp's fopen allows nobody that.
intptr_t open_writable(const std::string &path, DWORD how) {
    HANDLE const handle = CreateFileW(wide(path).c_str(), GENERIC_READ | GENERIC_WRITE,
                                      FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, how,
                                      FILE_ATTRIBUTE_NORMAL, nullptr);
    DWORD n = 0; // what is lengthened takes no room on the disk
    if (handle != INVALID_HANDLE_VALUE)
        (void)DeviceIoControl(handle, FSCTL_SET_SPARSE, nullptr, 0, nullptr, 0, &n, nullptr);
    return reinterpret_cast<intptr_t>(handle);
}

} // namespace

WritableFile::WritableFile(const std::string &path) : path_(path), handle_(open_writable(path, OPEN_EXISTING)) {
    if (handle_ == -1) fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), windows_message(GetLastError()).c_str());
}

WritableFile WritableFile::beside(const std::string &path) {
    static std::atomic<uint32_t> counter{0};
    WritableFile file;
    do {
        file.path_ = path + ".tmp" + std::to_string(GetCurrentProcessId()) + "-" + std::to_string(counter++);
        file.handle_ = open_writable(file.path_, CREATE_NEW);
    } while (file.handle_ == -1 && GetLastError() == ERROR_FILE_EXISTS);
    if (file.handle_ == -1) cannot_write(path, GetLastError());
    file.final_ = path;
    return file;
}

WritableFile WritableFile::in_memory(const std::string &label) {
    fail(EMOE_ERR_UNSUPPORTED, "this system has no files in memory: %s", label.c_str());
}

WritableFile::~WritableFile() {
    if (handle_ != -1) CloseHandle(handle_of(handle_));
    if (!final_.empty()) DeleteFileW(wide(path_).c_str());
}

void WritableFile::write(const void *data, size_t n, uint64_t offset) const {
    auto const *p = static_cast<const char *>(data);
    while (n > 0) {
        OVERLAPPED at = {};
        at.Offset = static_cast<DWORD>(offset);
        at.OffsetHigh = static_cast<DWORD>(offset >> 32);
        DWORD w = 0;
        if (!WriteFile(handle_of(handle_), p, static_cast<DWORD>(std::min<size_t>(n, size_t{64} << 20)), &w, &at))
            cannot_write(name(), GetLastError());
        p += w;
        n -= w;
        offset += w;
    }
}

void WritableFile::sync() const {
    if (!FlushFileBuffers(handle_of(handle_))) cannot_write(name(), GetLastError());
}

void WritableFile::publish() {
    CloseHandle(handle_of(handle_)); // what is open keeps its name
    handle_ = -1;
    if (!MoveFileExW(wide(path_).c_str(), wide(final_).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH))
        cannot_write(final_, GetLastError());
    path_ = final_;
    final_.clear();
}

void WritableFile::lock() const {
    OVERLAPPED at = {};
    at.OffsetHigh = k_lock_high;
    (void)LockFileEx(handle_of(handle_), LOCKFILE_EXCLUSIVE_LOCK, 0, 1, 0, &at);
}

void WritableFile::resize(uint64_t bytes) const {
    FILE_END_OF_FILE_INFO end = {};
    end.EndOfFile.QuadPart = static_cast<LONGLONG>(bytes);
    if (!SetFileInformationByHandle(handle_of(handle_), FileEndOfFileInfo, &end, sizeof end))
        fail(EMOE_ERR_IO, "cannot make `%s` %llu bytes long: %s", path_.c_str(), static_cast<unsigned long long>(bytes),
             windows_message(GetLastError()).c_str());
}

void WritableFile::drop_pages() const {} // nobody can be told

} // namespace emoe
