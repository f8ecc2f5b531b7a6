// A file read without the page cache: O_DIRECT (Windows: FILE_FLAG_NO_BUFFERING) where the file system takes it, else
// buffered reads that drop their pages behind them; or, where that is asked for, through a page cache that keeps what
// it can. Paths are UTF-8.
#pragma once

#include <edgemoe.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emoe {

// What tells one state of a file from another without reading it.
struct FileStamp {
    uint64_t size = 0;
    uint64_t inode = 0;
    uint64_t n_link = 0;
    int64_t modified_ns = 0; // the data
    int64_t changed_ns = 0;  // the data, or what is said of the file; nobody can set it back
};
bool stamp_of(const std::string &path, FileStamp *stamp); // false when it cannot be asked

enum class FileAccess : uint32_t {
    direct = EMOE_READ_DIRECT,
    buffered = EMOE_READ_BUFFERED,
    page_cache = EMOE_READ_PAGE_CACHE
};

class File final {
public:
    // Throws EMOE_ERR_IO with the path and the system's reason.
    File(const std::string &path, FileAccess access);
    ~File();
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    // Like pread: bytes read, 0 at the end of the file, or -errno.
    int64_t read(void *dst, size_t bytes, uint64_t offset) const;

    // Since it was opened or last accepted: written to, moved, given other rights. What took or lost a name is the same.
    bool changed() const;
    void accept(); // as it is now, unless it is shorter: that is for its next read to say
    // Whether the file still holds these bytes, as far as it goes.
    bool holds(const uint8_t *known, uint64_t bytes, uint64_t offset) const;

    void drop(uint64_t offset, uint64_t bytes) const; // out of the page cache, where a buffered reader left them

    int fd() const { return static_cast<int>(handle_); } // not on Windows
    const std::string &path() const { return path_; }
    uint64_t size() const { return size_; }
    bool direct() const { return direct_; }
    // Offsets, lengths and addresses of reads must be multiples of this. Buffered files keep an alignment too, so
    // that one layout serves both.
    uint32_t alignment() const { return alignment_; }

private:
    bool stamp(FileStamp *stamp) const; // as it is now

    std::string path_;
    intptr_t handle_ = -1; // the system's
    FileStamp stamp_;
    uint64_t size_ = 0;
    uint32_t alignment_ = 512; // buffered reads may begin anywhere: never more than a direct file's
    bool direct_ = false;
    bool keeps_ = false; // what was read stays in the page cache
};

// The first of them that has changed; null: none has.
const File *changed_of(const std::vector<std::unique_ptr<File>> &files);

} // namespace emoe
