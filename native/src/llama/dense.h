// Dense weights leave the page cache: each is copied to anonymous memory when the graph first names it, and the
// mapped pages behind it are dropped as the copy goes on, so that the bytes are in memory once.
#pragma once

#include "base/arena.h"

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace emoe {

struct Range {
    uintptr_t begin, end;
};

class DenseMover {
public:
    // mapping: where llama.cpp has mapped the shell, 0 when unknown. dense_end, full_end: see ShellExtent.
    DenseMover(uintptr_t mapping, uint64_t dense_end, uint64_t full_end, uint64_t dense_bytes, size_t n_tensor);

    // A source of a node about to be computed.
    void visit(ggml_tensor *t) {
        auto const p = reinterpret_cast<uintptr_t>(t->data);
        if (p - begin_ < dense_bytes_mapped_ && is_mapped(p)) move(t);
    }
    // A node that is itself a view of a weight: its address was computed before the weight moved.
    void visit_view(ggml_tensor *t) {
        if (!t->view_src || reinterpret_cast<uintptr_t>(t->data) - begin_ >= dense_bytes_mapped_) return;
        visit(t->view_src);
        t->data = static_cast<char *>(t->view_src->data) + t->view_offs;
    }
    // True for the declared bytes of experts, which nothing but our own product may ever touch.
    bool is_hole(const ggml_tensor *t) const {
        auto const p = reinterpret_cast<uintptr_t>(t->data);
        return p - hole_begin_ < hole_bytes_ && is_mapped(p);
    }
    // What only a GPU uses is unmapped after loading, and other memory may come to lie there: only these parts are
    // the file's. Empty: all of it is.
    void set_parts(std::vector<Range> parts) { parts_ = std::move(parts); }
    uint64_t moved_bytes() const { return moved_bytes_; }

private:
    void move(ggml_tensor *t);
    bool is_mapped(uintptr_t p) const {
        for (Range const &r : parts_)
            if (p - r.begin < r.end - r.begin) return true;
        return parts_.empty();
    }

    uintptr_t begin_ = 0; // of the mapping; 0-sized ranges where /proc is absent: weights then stay mapped
    uintptr_t dense_bytes_mapped_ = 0;
    uintptr_t hole_begin_ = 0;
    uintptr_t hole_bytes_ = 0;
    std::vector<Range> parts_;
    Arena arena_;
    size_t used_ = 0;
    std::atomic<uint64_t> moved_bytes_{0};           // read by any thread that asks for stats
    std::unordered_map<const void *, void *> moved_; // tied tensors share an address
};

// Addresses at which this process has mapped a file (of its byte 0), one for each part. Empty where /proc is absent.
std::vector<uintptr_t> mappings_of(const std::string &path, std::vector<Range> *parts = nullptr);

} // namespace emoe
