#include "io/file.h"

#include "base/error.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace emoe {

namespace {

#ifdef O_DIRECT
// The smallest alignment that the file system states for direct reads; 4096 covers all drives seen.
uint32_t direct_alignment(int fd) {
#if defined(__linux__) && defined(STATX_DIOALIGN)
    struct statx sx = {};
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) == 0 && (sx.stx_mask & STATX_DIOALIGN) &&
        sx.stx_dio_offset_align != 0)
        return std::max({sx.stx_dio_offset_align, sx.stx_dio_mem_align, uint32_t{512}});
#else
    (void)fd;
#endif
    return 4096;
}

bool can_read_direct(int fd, uint32_t alignment) {
    void *block = nullptr;
    if (posix_memalign(&block, alignment, alignment) != 0) return false;
    ssize_t const n = pread(fd, block, alignment, 0);
    free(block);
    return n >= 0;
}
#endif

FileStamp stamp_of(const struct stat &st) {
#if defined(__APPLE__)
    struct timespec const modified = st.st_mtimespec, changed = st.st_ctimespec;
#else
    struct timespec const modified = st.st_mtim, changed = st.st_ctim;
#endif
    auto const ns = [](const struct timespec &t) { return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec; };
    return {static_cast<uint64_t>(st.st_size), static_cast<uint64_t>(st.st_ino), static_cast<uint64_t>(st.st_nlink),
            ns(modified), ns(changed)};
}

} // namespace

bool stamp_of(const std::string &path, FileStamp *stamp) {
    struct stat st = {};
    if (stat(path.c_str(), &st) != 0) return false;
    *stamp = stamp_of(st);
    return true;
}

File::File(const std::string &path, FileAccess access) : path_(path), keeps_(access == FileAccess::page_cache) {
    struct stat st = {};
    if (stat(path.c_str(), &st) != 0)
        fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno).c_str());
    if (!S_ISREG(st.st_mode)) fail(EMOE_ERR_IO, "`%s` is not a file", path.c_str());
    size_ = static_cast<uint64_t>(st.st_size);
#ifdef O_DIRECT
    if (access == FileAccess::direct) {
        handle_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (handle_ >= 0) {
            alignment_ = direct_alignment(fd());
            direct_ = can_read_direct(fd(), alignment_);
            if (!direct_ && alignment_ < 4096) {
                alignment_ = 4096;
                direct_ = can_read_direct(fd(), alignment_);
            }
            if (!direct_) {
                close(fd());
                handle_ = -1;
                alignment_ = 512;
            }
        }
    }
#else
    (void)access;
#endif
    if (handle_ < 0) handle_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (handle_ < 0) fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno).c_str());
    accept();
#ifdef F_NOCACHE
    if (access == FileAccess::direct)
        direct_ = fcntl(fd(), F_NOCACHE, 1) == 0; // macOS: no page cache, no alignment rule
#endif
#ifdef POSIX_FADV_RANDOM
    if (!direct_) (void)posix_fadvise(fd(), 0, 0, POSIX_FADV_RANDOM); // no read-ahead beyond what is asked
#endif
}

bool File::stamp(FileStamp *stamp) const {
    struct stat st = {};
    if (fstat(fd(), &st) != 0) return false;
    *stamp = stamp_of(st);
    return true;
}

File::~File() {
    if (handle_ >= 0) close(fd());
}

int64_t File::read(void *dst, size_t bytes, uint64_t offset) const {
    ssize_t n;
    do n = pread(fd(), dst, bytes, static_cast<off_t>(offset));
    while (n < 0 && errno == EINTR);
    if (n < 0) return -errno;
    drop(offset, static_cast<uint64_t>(n));
    return n;
}

void File::drop(uint64_t offset, uint64_t bytes) const {
#ifdef POSIX_FADV_DONTNEED
    if (!direct_ && !keeps_)
        (void)posix_fadvise(fd(), static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_DONTNEED);
#else
    (void)offset;
    (void)bytes;
#endif
}

} // namespace emoe
