#include "llama/dense.h"

#include "base/paths.h"
#include "io/reader.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string_view>
#include <system_error>
#include <thread>

#ifdef __linux__
#include <unistd.h>
#endif

namespace emoe {

namespace {

constexpr uint64_t k_gap = uint64_t{64} << 10;  // between tensors that are read together: less than a read costs
constexpr uint64_t k_piece = uint64_t{2} << 20; // of one read
constexpr size_t k_no_extent = SIZE_MAX;        // of a tensor that stays in its file
constexpr unsigned k_lanes = 4;                 // reads under way

#ifdef __linux__
// What /proc/self/maps calls a file.
std::string mapped_name(const std::string &path) {
    if (path.rfind("/proc/self/fd/", 0) == 0) { // one that has no name
        char name[512];
        ssize_t const n = readlink(path.c_str(), name, sizeof name);
        return n > 0 ? std::string(name, static_cast<size_t>(n)) : "";
    }
    return real_path(path);
}
#endif

} // namespace

std::vector<uintptr_t> mappings_of(const std::string &path) {
    std::vector<uintptr_t> found;
#ifdef __linux__
    std::string const real = mapped_name(path);
    FILE *maps = real.empty() ? nullptr : fopen("/proc/self/maps", "r");
    char line[8192];
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t begin = 0, end = 0;
        uint64_t offset = 0;
        int name = 0;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %" SCNx64 " %*s %*s %n", &begin, &end, &offset, &name) < 3)
            continue;
        line[strcspn(line, "\n")] = 0;
        // llama.cpp unmaps the metadata in front: what is left begins at some page of the file.
        if (real != line + name) continue;
        found.push_back(begin - offset);
    }
    if (maps) fclose(maps);
#else
    (void)path;
#endif
    return found;
}

DenseWeights::DenseWeights(const ModelIndex &index, FileAccess access, bool with_tables)
    : tensors_(index.dense.size(), Tensor{k_no_extent, 0}) {
    for (std::string const &path : index.layout.paths) files_.push_back(std::make_unique<File>(path, access));
    std::vector<size_t> order(index.dense.size());
    std::iota(order.begin(), order.end(), size_t{0});
    auto const &d = index.dense;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return d[a].file != d[b].file ? d[a].file < d[b].file : d[a].offset < d[b].offset;
    });
    size_t used = 0;
    for (size_t const i : order) {
        if (d[i].is_table && !with_tables) continue;
        uint64_t const align = files_[d[i].file]->alignment();
        uint64_t const begin = d[i].offset / align * align;
        uint64_t const end = (d[i].offset + d[i].bytes + align - 1) / align * align;
        bool const joins = !extents_.empty() && extents_.back().file == d[i].file &&
                           begin <= extents_.back().offset + extents_.back().bytes + k_gap;
        if (!joins) {
            used = (used + 4095) / 4096 * 4096;
            extents_.push_back({d[i].file, begin, 0, used});
        }
        Extent &e = extents_.back();
        e.bytes = std::max(e.bytes, end - e.offset);
        used = e.place + e.bytes;
        tensors_[i] = {extents_.size() - 1, e.place + static_cast<size_t>(d[i].offset - e.offset)};
    }
    arena_ = Arena(std::max<size_t>(used, 4096));
}

void DenseWeights::set_mapping(const ModelIndex &index, uintptr_t mapping, const ShellExtent &extent) {
    if (mapping == 0) {
        for (auto const *tensors : {&index.experts, &index.unused})
            for (TensorInfo const &t : *tensors) hole_names_.insert(t.name);
        return;
    }
    begin_ = mapping;
    dense_end_ = extent.dense_end;
    hole_bytes_ = extent.full_end - extent.dense_end;
    for (size_t i = 0; i < extent.dense.size(); i++) by_offset_.emplace(extent.dense[i], i);
}

bool DenseWeights::is_undeclared(const ggml_tensor *t) const {
    ggml_tensor const *weight = t->view_src ? t->view_src : t;
    return weight->buffer && is_weight(t) && ggml_backend_buffer_is_host(weight->buffer) &&
           hole_names_.count(std::string_view(weight->name)) != 0;
}

void DenseWeights::place(ggml_tensor *t) {
    // Two tensors may have one address: a matrix that is embedding and output.
    auto const found = by_offset_.find(reinterpret_cast<uintptr_t>(t->data) - begin_);
    if (found == by_offset_.end()) {
        if (!failure_)
            failure_ = {EMOE_ERR_UNSUPPORTED,
                        std::string("`") + ggml_get_name(t) + "` lies where the file has no tensor"};
        return;
    }
    Tensor &tensor = tensors_[found->second];
    if (tensor.extent == k_no_extent) {
        if (!failure_)
            failure_ = {EMOE_ERR_UNSUPPORTED, std::string("`") + ggml_get_name(t) +
                                                  "` is used otherwise than by row, so it cannot stay in the file: "
                                                  "this model needs a budget in which everything fits"};
        return;
    }
    Extent &extent = extents_[tensor.extent];
    if (!extent.here) read(extent);
    t->data = arena_.data() + tensor.place;
    if (tensor.counted) return;
    tensor.counted = true;
    read_bytes_ += ggml_nbytes(t);
}

bool DenseWeights::same_as_files() const {
    bool any = false;
    for (Extent const &e : extents_) {
        if (e.here && !files_[e.file]->holds(arena_.data() + e.place, e.bytes, e.offset)) return false;
        any = any || e.here;
    }
    return any;
}

void DenseWeights::read(Extent &extent) {
    extent.here = true;
    File const &file = *files_[extent.file];
    auto const n_piece = static_cast<size_t>((extent.bytes + k_piece - 1) / k_piece);
    std::atomic<size_t> next{0};
    std::vector<std::string> errors(n_piece);
    auto const work = [&] {
        for (size_t i = next++; i < n_piece; i = next++) {
            uint64_t const done = i * k_piece, offset = extent.offset + done,
                           n = std::min(k_piece, extent.bytes - done);
            uint64_t const need =
                std::min(n, file.size() - std::min(file.size(), offset)); // the file may end in between
            if (need > 0)
                errors[i] = read_now({&file, offset, static_cast<uint32_t>(n), static_cast<uint32_t>(need),
                                      file.alignment(), arena_.data() + extent.place + done, 0});
        }
    };
    std::vector<std::thread> lanes;
    try { // with fewer where the system gives no more
        for (unsigned i = 1; i < k_lanes && i < n_piece; i++) lanes.emplace_back(work);
    } catch (const std::system_error &) {
    } catch (const std::bad_alloc &) {
    }
    work();
    for (std::thread &lane : lanes) lane.join();
    for (std::string const &error : errors)
        if (!error.empty() && !failure_)
            failure_ = {EMOE_ERR_IO, "dense weights of `" + file.path() + "` could not be read: " + error};
    file.drop(extent.offset, extent.bytes);
}

} // namespace emoe
