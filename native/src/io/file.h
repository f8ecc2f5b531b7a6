// A file read without the page cache: O_DIRECT where the file system takes it, else buffered reads that
// drop their pages behind them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace emoe {

class File final {
public:
    // Throws EMOE_ERR_IO with the path and the system's reason. buffered: do not try O_DIRECT.
    File(const std::string &path, bool buffered);
    ~File();
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    // Like pread: bytes read, 0 at the end of the file, or -errno.
    int64_t read(void *dst, size_t bytes, uint64_t offset) const;

    int fd() const { return fd_; }
    const std::string &path() const { return path_; }
    uint64_t size() const { return size_; }
    bool direct() const { return direct_; }
    // Offsets, lengths and addresses of reads must be multiples of this. Buffered files keep an alignment too, so
    // that one layout serves both.
    uint32_t alignment() const { return alignment_; }

private:
    std::string path_;
    int fd_ = -1;
    uint64_t size_ = 0;
    uint32_t alignment_ = 512; // buffered reads may begin anywhere: never more than a direct file's
    bool direct_ = false;
};

} // namespace emoe
