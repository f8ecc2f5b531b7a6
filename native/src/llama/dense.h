// Dense weights in anonymous memory: read from the model's own files, past the page cache, when a graph first names
// them. llama.cpp has only the declared addresses of a shell, where no data is.
//
// Tensors that lie together in a file are read together (an *extent*), a few reads at once, straight to where they stay.
#pragma once

#include "base/arena.h"
#include "base/error.h"
#include "io/file.h"
#include "llama/index.h"
#include "llama/shell.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace emoe {

class DenseWeights {
public:
    // Opens the files; reads nothing. Throws EMOE_ERR_IO, EMOE_ERR_MEMORY.
    // with_tables: tables too; else those have no place here.
    DenseWeights(const ModelIndex &index, FileAccess access, bool with_tables);

    // Where llama.cpp has mapped the shell; 0: nobody says, and the weights stay where they are. What nobody uses of it is
    // unmapped after loading, and other memory may come to lie there: an address alone makes no tensor a weight.
    void set_mapping(const ModelIndex &index, uintptr_t mapping, const ShellExtent &extent);

    // A source of a node about to be computed. What cannot be read is told by failure(); the weights are zeros then,
    // and must not be computed with.
    void visit(ggml_tensor *t) {
        auto const p = reinterpret_cast<uintptr_t>(t->data);
        if (p - begin_ < dense_end_ && is_weight(t)) place(t);
    }
    // A node that is itself a view of a weight: its address was computed before the weight had its place.
    void visit_view(ggml_tensor *t) {
        if (!t->view_src || reinterpret_cast<uintptr_t>(t->data) - begin_ >= dense_end_) return;
        visit(t->view_src);
        t->data = static_cast<char *>(t->view_src->data) + t->view_offs;
    }
    // True for the declared bytes of experts, which nothing but our own product may ever touch. Known by their address;
    // by their name where nobody says what is mapped where: there other memory may lie at such an address.
    bool is_hole(const ggml_tensor *t) const {
        if (begin_ == 0) return is_undeclared(t);
        auto const p = reinterpret_cast<uintptr_t>(t->data);
        return p - begin_ - dense_end_ < hole_bytes_ && is_weight(t);
    }
    uint64_t bytes() const { return read_bytes_; } // of tensors that have their place
    // Whether the files still hold what was read of them. False when nothing was.
    bool same_as_files() const;
    const Failure &failure() const { return failure_; }

private:
    struct Extent { // of one file, read whole
        uint16_t file;
        uint64_t offset, bytes; // aligned
        size_t place;           // in the arena
        bool here = false;
    };
    struct Tensor {
        size_t extent;
        size_t place; // in the arena
        bool counted = false;
    };
    void place(ggml_tensor *t);
    bool is_undeclared(const ggml_tensor *t) const;
    void read(Extent &extent);
    static bool is_weight(const ggml_tensor *t) {
        ggml_backend_buffer_t const buffer = t->view_src ? t->view_src->buffer : t->buffer;
        return buffer && ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    }

    std::vector<std::unique_ptr<File>> files_;
    std::vector<Extent> extents_;
    std::vector<Tensor> tensors_;          // as index.dense
    std::map<uint64_t, size_t> by_offset_; // in the shell, to tensors_
    Arena arena_;
    uintptr_t begin_ = 0; // of the mapping
    uintptr_t dense_end_ = 0, hole_bytes_ = 0;
    std::set<std::string, std::less<>> hole_names_; // where nobody says what is mapped
    std::atomic<uint64_t> read_bytes_{0};           // read by any thread that asks for stats
    Failure failure_;
};

// Addresses at which this process has mapped a file (of its byte 0), one for each part. Empty where /proc is absent.
std::vector<uintptr_t> mappings_of(const std::string &path);

} // namespace emoe
