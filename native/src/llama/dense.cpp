#include "llama/dense.h"

#include "base/error.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emoe {

namespace {

// Kernels read rows with wide loads; a cache line keeps them as aligned as any mapping would.
constexpr size_t k_alignment = 64;
// Copied and dropped piece by piece, so that the peak is one piece more than the weights.
constexpr size_t k_piece = size_t{4} << 20;

} // namespace

std::vector<uintptr_t> mappings_of(const std::string &path, std::vector<Range> *parts) {
    std::vector<uintptr_t> found;
#ifdef __linux__
    char *real = realpath(path.c_str(), nullptr);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[8192];
    while (real && maps && fgets(line, sizeof line, maps)) {
        uintptr_t begin = 0, end = 0;
        uint64_t offset = 0;
        int name = 0;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %" SCNx64 " %*s %*s %n", &begin, &end, &offset, &name) < 3)
            continue;
        line[strcspn(line, "\n")] = 0;
        // llama.cpp unmaps the metadata in front: what is left begins at some page of the file.
        if (strcmp(line + name, real) != 0) continue;
        found.push_back(begin - offset);
        if (parts) parts->push_back(Range{begin, end});
    }
    if (maps) fclose(maps);
    free(real);
#else
    (void)path;
    (void)parts;
#endif
    return found;
}

DenseMover::DenseMover(uintptr_t mapping, uint64_t dense_end, uint64_t full_end, uint64_t dense_bytes,
                       size_t n_tensor) {
    begin_ = mapping;
    if (begin_ == 0) return;
    dense_bytes_mapped_ = dense_end;
    hole_begin_ = begin_ + dense_end;
    hole_bytes_ = full_end - dense_end;
    arena_ = Arena(dense_bytes + n_tensor * k_alignment);
}

void DenseMover::move(ggml_tensor *t) {
    auto const known = moved_.find(t->data);
    if (known != moved_.end()) {
        t->data = known->second;
        return;
    }
    size_t const bytes = ggml_nbytes(t);
    if (used_ + bytes > arena_.size()) return; // never for the tensors of the file; stays mapped, which is correct
    uint8_t *to = arena_.data() + used_;
    auto *from = static_cast<uint8_t *>(t->data);
    for (size_t done = 0; done < bytes; done += k_piece) {
        size_t const n = std::min(k_piece, bytes - done);
        memcpy(to + done, from + done, n);
        release_pages(from + done, n); // of the mapping: the file has them
    }
    moved_.emplace(t->data, to);
    t->data = to;
    used_ += (bytes + k_alignment - 1) / k_alignment * k_alignment;
    moved_bytes_ += bytes;
}

} // namespace emoe
