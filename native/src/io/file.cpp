#include "io/file.h"

#include "base/arena.h"
#include "base/error.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace emoe {

namespace {

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

} // namespace

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

File::File(const std::string &path, bool buffered) : path_(path) {
    struct stat st = {};
    if (stat(path.c_str(), &st) != 0)
        fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno).c_str());
    if (!S_ISREG(st.st_mode)) fail(EMOE_ERR_IO, "`%s` is not a file", path.c_str());
    size_ = static_cast<uint64_t>(st.st_size);
#ifdef O_DIRECT
    if (!buffered) {
        fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        if (fd_ >= 0) {
            alignment_ = direct_alignment(fd_);
            direct_ = can_read_direct(fd_, alignment_);
            if (!direct_ && alignment_ < 4096) {
                alignment_ = 4096;
                direct_ = can_read_direct(fd_, alignment_);
            }
            if (!direct_) {
                close(fd_);
                fd_ = -1;
                alignment_ = 512;
            }
        }
    }
#else
    (void)buffered;
#endif
    if (fd_ < 0) fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ < 0) fail(EMOE_ERR_IO, "cannot open `%s`: %s", path.c_str(), os_message(errno).c_str());
    accept();
#ifdef F_NOCACHE
    if (!buffered) direct_ = fcntl(fd_, F_NOCACHE, 1) == 0; // macOS: no page cache, no alignment rule
#endif
#ifdef POSIX_FADV_RANDOM
    if (!direct_) (void)posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM); // no read-ahead beyond what is asked
#endif
}

bool File::changed() const {
    struct stat st = {};
    if (fstat(fd_, &st) != 0) return false; // a read will say more
    FileStamp const now = stamp_of(st);
    if (now.size != stamp_.size || now.modified_ns != stamp_.modified_ns) return true;
    return now.changed_ns != stamp_.changed_ns && now.n_link == stamp_.n_link;
}

void File::accept() {
    struct stat st = {};
    if (fstat(fd_, &st) == 0 && static_cast<uint64_t>(st.st_size) >= stamp_.size) stamp_ = stamp_of(st);
}

bool File::holds(const uint8_t *known, uint64_t bytes, uint64_t offset) const {
    constexpr uint64_t k_piece = uint64_t{1} << 20;
    Arena const piece(k_piece, false);
    uint64_t const end = offset + bytes;
    uint64_t skip = offset % alignment_; // the first read begins before what is asked for
    for (uint64_t at = offset - skip; at < end; at += k_piece, skip = 0) {
        uint64_t const want = std::min(k_piece, (end - at + alignment_ - 1) / alignment_ * alignment_);
        int64_t const n = read(piece.data(), want, at);
        if (n < 0) return false;
        uint64_t const there = std::min(static_cast<uint64_t>(n), end - at);
        if (there > skip && memcmp(piece.data() + skip, known + (at + skip - offset), there - skip) != 0) return false;
        if (static_cast<uint64_t>(n) < want) break;
    }
    return true;
}

File::~File() {
    if (fd_ >= 0) close(fd_);
}

int64_t File::read(void *dst, size_t bytes, uint64_t offset) const {
    ssize_t n;
    do n = pread(fd_, dst, bytes, static_cast<off_t>(offset));
    while (n < 0 && errno == EINTR);
    if (n < 0) return -errno;
#ifdef POSIX_FADV_DONTNEED
    if (!direct_) (void)posix_fadvise(fd_, static_cast<off_t>(offset), n, POSIX_FADV_DONTNEED);
#endif
    return n;
}

} // namespace emoe
