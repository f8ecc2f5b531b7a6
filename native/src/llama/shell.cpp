#include "llama/shell.h"

#include "base/error.h"
#include "io/file.h"
#include "llama/log.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace emoe {

namespace {

constexpr uint32_t k_shell_version = 1;
constexpr const char *k_key_version = "edgemoe.shell.version";
constexpr const char *k_key_identity = "edgemoe.shell.identity";
constexpr const char *k_key_data = "edgemoe.shell.has_data";

struct GgmlFree {
    void operator()(ggml_context *c) const { ggml_free(c); }
};

void copy_tensor(const TensorInfo &t, const File &from, const WritableFile &to, uint64_t to_offset) {
    std::vector<char> block(size_t{4} << 20);
    for (uint64_t done = 0; done < t.bytes;) {
        size_t const want = static_cast<size_t>(std::min<uint64_t>(block.size(), t.bytes - done));
        int64_t const n = from.read(block.data(), want, t.offset + done);
        if (n <= 0)
            fail(EMOE_ERR_IO, "cannot read tensor `%s` of `%s`: %s", t.name.c_str(), from.path().c_str(),
                 n < 0 ? os_message(static_cast<int>(-n)).c_str() : "the file ends early");
        to.write(block.data(), static_cast<size_t>(n), to_offset + done);
        done += static_cast<uint64_t>(n);
    }
}

// The whole shell into an empty file.
void write_to(const WritableFile &out, const ModelIndex &index, bool with_data) {
    AssertionGuard const guard;
    GgufPtr g(gguf_init_empty());
    gguf_set_kv(g.get(), index.meta.get());
    for (const char *key : {"split.no", "split.count", "split.tensors.count", "general.alignment"})
        gguf_remove_key(g.get(), key);
    gguf_set_val_u32(g.get(), k_key_version, k_shell_version);
    gguf_set_val_u64(g.get(), k_key_identity, index.identity);
    gguf_set_val_bool(g.get(), k_key_data, with_data);

    ggml_init_params params = {};
    params.mem_size = (index.dense.size() + index.experts.size() + index.unused.size() + 1) * ggml_tensor_overhead();
    params.no_alloc = true;
    std::unique_ptr<ggml_context, GgmlFree> const ctx(ggml_init(params));
    for (auto const *tensors : {&index.dense, &index.experts, &index.unused})
        for (TensorInfo const &t : *tensors) {
            ggml_tensor *tensor = ggml_new_tensor(ctx.get(), t.type, GGML_MAX_DIMS, t.ne);
            ggml_set_name(tensor, t.name.c_str());
            gguf_add_tensor(g.get(), tensor);
        }
    std::vector<char> meta(gguf_get_meta_size(g.get()));
    gguf_get_meta_data(g.get(), meta.data());
    out.write(meta.data(), meta.size(), 0);
    if (!with_data) return;
    std::vector<std::unique_ptr<File>> sources;
    for (std::string const &p : index.layout.paths) sources.push_back(std::make_unique<File>(p, FileAccess::buffered));
    for (TensorInfo const &t : index.dense) {
        uint64_t const to = meta.size() + gguf_get_tensor_offset(g.get(), gguf_find_tensor(g.get(), t.name.c_str()));
        copy_tensor(t, *sources[t.file], out, to);
    }
}

} // namespace

void write_shell(const ModelIndex &index, const std::string &path, bool with_data) {
    WritableFile out = WritableFile::beside(path);
    write_to(out, index, with_data);
    out.sync();
    out.drop_pages();
    check_unchanged(index); // what was copied is of the file whose identity the shell bears
    out.publish();
}

MemoryShell::MemoryShell(const ModelIndex &index) : file_(in_memory()) { write_to(file_, index, false); }

WritableFile MemoryShell::in_memory() {
    static std::atomic<unsigned> count{0};
    return WritableFile::in_memory("edgemoe-shell-" + std::to_string(count++));
}

ShellExtent check_shell(const ModelIndex &index, const std::string &path, bool need_data) {
    AssertionGuard const guard;
    gguf_init_params params = {};
    params.no_alloc = true;
    FileStamp there;
    GgufPtr const g(stamp_of(path, &there) ? gguf_init_from_file(path.c_str(), params) : nullptr);
    if (!g) fail(EMOE_ERR_IO, "there is no shell at `%s`", path.c_str());
    int64_t const version = gguf_find_key(g.get(), k_key_version);
    int64_t const identity = gguf_find_key(g.get(), k_key_identity);
    int64_t const data = gguf_find_key(g.get(), k_key_data);
    bool const ours =
        version >= 0 && identity >= 0 && data >= 0 && gguf_get_val_u32(g.get(), version) == k_shell_version &&
        gguf_get_val_u64(g.get(), identity) == index.identity && (!need_data || gguf_get_val_bool(g.get(), data)) &&
        gguf_get_n_tensors(g.get()) ==
            static_cast<int64_t>(index.dense.size() + index.experts.size() + index.unused.size());
    if (!ours) fail(EMOE_ERR_FORMAT, "`%s` is not a shell of this model", path.c_str());
    ShellExtent extent;
    uint64_t const base = gguf_get_data_offset(g.get());
    for (int64_t i = 0; i < gguf_get_n_tensors(g.get()); i++) {
        uint64_t const end = base + gguf_get_tensor_offset(g.get(), i) + gguf_get_tensor_size(g.get(), i);
        extent.full_end = std::max(extent.full_end, end);
        if (i >= static_cast<int64_t>(index.dense.size())) continue;
        extent.dense_end = std::max(extent.dense_end, end);
        extent.dense.push_back(base + gguf_get_tensor_offset(g.get(), i));
    }
    extent.stored_end = gguf_get_val_bool(g.get(), data) ? extent.dense_end : base;
    if (there.size < extent.stored_end) fail(EMOE_ERR_FORMAT, "the shell `%s` is truncated", path.c_str());
    return extent;
}

ShellLoad::ShellLoad(const std::string &path, ShellExtent extent) : file_(path), extent_(std::move(extent)) {
    file_.lock();
    file_.resize(extent_.full_end);
}

ShellLoad::~ShellLoad() { shorten(); }

void ShellLoad::shorten() const { try_resize(extent_.stored_end); }

void ShellLoad::lengthen() const { try_resize(extent_.full_end); }

void ShellLoad::try_resize(uint64_t bytes) const {
    try {
        file_.resize(bytes);
    } catch (const Error &) { // a mapped file keeps its length on some systems; llama.cpp says what it then lacks
    }
}

} // namespace emoe
