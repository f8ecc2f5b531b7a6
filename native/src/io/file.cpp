// What is the same on every system; the rest is file_posix.cpp and file_windows.cpp.
#include "io/file.h"

#include "base/arena.h"

#include <algorithm>
#include <cstring>

namespace emoe {

bool File::changed() const {
    FileStamp now;
    if (!stamp(&now)) return false; // a read will say more
    if (now.size != stamp_.size || now.modified_ns != stamp_.modified_ns) return true;
    return now.changed_ns != stamp_.changed_ns && now.n_link == stamp_.n_link;
}

void File::accept() {
    FileStamp now;
    if (stamp(&now) && now.size >= stamp_.size) stamp_ = now;
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

const File *changed_of(const std::vector<std::unique_ptr<File>> &files) {
    for (auto const &file : files)
        if (file->changed()) return file.get();
    return nullptr;
}

} // namespace emoe
