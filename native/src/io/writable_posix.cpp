#include "base/error.h"
#include "io/writable.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace emoe {

namespace {

[[noreturn]] void cannot_write(const std::string &path, int error) {
    fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(error).c_str());
}

int fd_of(intptr_t handle) { return static_cast<int>(handle); }

} // namespace

WritableFile::WritableFile(const std::string &path) : path_(path), handle_(open(path.c_str(), O_RDWR | O_CLOEXEC)) {
    if (handle_ < 0) fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno).c_str());
}

WritableFile WritableFile::beside(const std::string &path) {
    WritableFile file;
    file.path_ = path + ".tmpXXXXXX";
    file.handle_ = mkostemp(file.path_.data(), O_CLOEXEC);
    if (file.handle_ < 0) cannot_write(path, errno);
    file.final_ = path;
    (void)fchmod(fd_of(file.handle_), 0644);
    return file;
}

WritableFile WritableFile::in_memory(const std::string &label) {
#ifdef __linux__
    WritableFile file;
    file.handle_ = memfd_create(label.c_str(), MFD_CLOEXEC);
    if (file.handle_ < 0) fail(EMOE_ERR_IO, "cannot make a file in memory: %s", os_message(errno).c_str());
    file.path_ = "/proc/self/fd/" + std::to_string(file.handle_);
    if (access(file.path_.c_str(), R_OK) != 0) fail(EMOE_ERR_UNSUPPORTED, "/proc is not mounted here");
    return file;
#else
    fail(EMOE_ERR_UNSUPPORTED, "this system has no files in memory: %s", label.c_str());
#endif
}

WritableFile::~WritableFile() {
    if (handle_ >= 0) close(fd_of(handle_));
    if (!final_.empty()) unlink(path_.c_str());
}

void WritableFile::write(const void *data, size_t n, uint64_t offset) const {
    auto const *p = static_cast<const char *>(data);
    while (n > 0) {
        ssize_t const w = pwrite(fd_of(handle_), p, n, static_cast<off_t>(offset));
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) cannot_write(name(), w < 0 ? errno : ENOSPC);
        p += w;
        n -= static_cast<size_t>(w);
        offset += static_cast<uint64_t>(w);
    }
}

void WritableFile::sync() const {
    if (fsync(fd_of(handle_)) != 0) cannot_write(name(), errno);
}

void WritableFile::publish() {
    if (rename(path_.c_str(), final_.c_str()) != 0) cannot_write(final_, errno);
    path_ = final_;
    final_.clear();
}

void WritableFile::lock() const {
    while (flock(fd_of(handle_), LOCK_EX) != 0 && errno == EINTR) {
    }
}

void WritableFile::resize(uint64_t bytes) const {
    if (ftruncate(fd_of(handle_), static_cast<off_t>(bytes)) != 0)
        fail(EMOE_ERR_IO, "cannot make `%s` %llu bytes long: %s", path_.c_str(), static_cast<unsigned long long>(bytes),
             os_message(errno).c_str());
}

void WritableFile::drop_pages() const {
#ifdef POSIX_FADV_DONTNEED
    (void)posix_fadvise(fd_of(handle_), 0, 0, POSIX_FADV_DONTNEED);
#endif
}

} // namespace emoe
