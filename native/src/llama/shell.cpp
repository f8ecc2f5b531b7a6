#include "llama/shell.h"

#include "base/error.h"
#include "llama/log.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace emoe {

namespace {

constexpr uint32_t k_shell_version = 1;
constexpr const char *k_key_version = "edgemoe.shell.version";
constexpr const char *k_key_identity = "edgemoe.shell.identity";
constexpr const char *k_key_data = "edgemoe.shell.has_data";

class Fd {
public:
    explicit Fd(int fd) : fd_(fd) {}
    ~Fd() {
        if (fd_ >= 0) close(fd_);
    }
    Fd(const Fd &) = delete;
    Fd &operator=(const Fd &) = delete;
    int get() const { return fd_; }

private:
    int fd_;
};

struct GgmlFree {
    void operator()(ggml_context *c) const { ggml_free(c); }
};

// Removes the temporary file unless the work was finished.
struct TemporaryFile {
    std::string path;
    bool keep = false;
    ~TemporaryFile() {
        if (!keep) unlink(path.c_str());
    }
};

void write_all(int fd, const void *data, size_t n, uint64_t offset, const std::string &path) {
    auto const *p = static_cast<const char *>(data);
    while (n > 0) {
        ssize_t const w = pwrite(fd, p, n, static_cast<off_t>(offset));
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0)
            fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(w < 0 ? errno : ENOSPC).c_str());
        p += w;
        n -= static_cast<size_t>(w);
        offset += static_cast<uint64_t>(w);
    }
}

void copy_tensor(const TensorInfo &t, const std::string &from_path, int from, int to, uint64_t to_offset,
                 const std::string &to_path) {
    std::vector<char> block(size_t{4} << 20);
    for (uint64_t done = 0; done < t.bytes;) {
        size_t const want = static_cast<size_t>(std::min<uint64_t>(block.size(), t.bytes - done));
        ssize_t const n = pread(from, block.data(), want, static_cast<off_t>(t.offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            fail(EMOE_ERR_IO, "cannot read tensor `%s` of `%s`: %s", t.name.c_str(), from_path.c_str(),
                 n < 0 ? os_message(errno).c_str() : "the file ends early");
        write_all(to, block.data(), static_cast<size_t>(n), to_offset + done, to_path);
#ifdef POSIX_FADV_DONTNEED
        (void)posix_fadvise(from, static_cast<off_t>(t.offset + done), n, POSIX_FADV_DONTNEED);
#endif
        done += static_cast<uint64_t>(n);
    }
}

// The whole shell into a file that is open and empty. path: for messages.
void write_to(int out, const ModelIndex &index, bool with_data, const std::string &path) {
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
    write_all(out, meta.data(), meta.size(), 0, path);
    if (!with_data) return;
    std::vector<std::unique_ptr<Fd>> sources;
    for (std::string const &p : index.layout.paths) {
        sources.push_back(std::make_unique<Fd>(open(p.c_str(), O_RDONLY | O_CLOEXEC)));
        if (sources.back()->get() < 0) fail(EMOE_ERR_IO, "cannot open `%s`: %s", p.c_str(), os_message(errno).c_str());
    }
    for (TensorInfo const &t : index.dense) {
        uint64_t const to = meta.size() + gguf_get_tensor_offset(g.get(), gguf_find_tensor(g.get(), t.name.c_str()));
        copy_tensor(t, index.layout.paths[t.file], sources[t.file]->get(), out, to, path);
    }
}

} // namespace

void write_shell(const ModelIndex &index, const std::string &path, bool with_data) {
    // A name of its own for every writer: two may write the same shell at once, in one process or in two.
    TemporaryFile temporary{path + ".tmpXXXXXX"};
    Fd const out(mkostemp(temporary.path.data(), O_CLOEXEC));
    if (out.get() < 0) {
        temporary.keep = true;
        fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(errno).c_str());
    }
    (void)fchmod(out.get(), 0644);
    write_to(out.get(), index, with_data, path);
    if (fsync(out.get()) != 0) fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(errno).c_str());
#ifdef POSIX_FADV_DONTNEED
    (void)posix_fadvise(out.get(), 0, 0, POSIX_FADV_DONTNEED);
#endif
    check_unchanged(index); // what was copied is of the file whose identity the shell bears
    if (rename(temporary.path.c_str(), path.c_str()) != 0)
        fail(EMOE_ERR_IO, "cannot write `%s`: %s", path.c_str(), os_message(errno).c_str());
    temporary.keep = true;
}

MemoryShell::MemoryShell(const ModelIndex &index) {
#ifdef __linux__
    static std::atomic<unsigned> count{0};
    fd_ = memfd_create(("edgemoe-shell-" + std::to_string(count++)).c_str(), MFD_CLOEXEC);
    if (fd_ < 0) fail(EMOE_ERR_IO, "cannot make a file in memory: %s", os_message(errno).c_str());
    path_ = "/proc/self/fd/" + std::to_string(fd_);
    try {
        if (access(path_.c_str(), R_OK) != 0) fail(EMOE_ERR_UNSUPPORTED, "/proc is not mounted here");
        write_to(fd_, index, false, "a file in memory");
    } catch (...) {
        close(fd_);
        throw;
    }
#else
    (void)index;
    fail(EMOE_ERR_UNSUPPORTED, "this system has no files in memory");
#endif
}

MemoryShell::~MemoryShell() {
    if (fd_ >= 0) close(fd_);
}

ShellExtent check_shell(const ModelIndex &index, const std::string &path, bool need_data) {
    AssertionGuard const guard;
    gguf_init_params params = {};
    params.no_alloc = true;
    GgufPtr const g(access(path.c_str(), R_OK) == 0 ? gguf_init_from_file(path.c_str(), params) : nullptr);
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
    struct stat st = {};
    if (stat(path.c_str(), &st) != 0 || static_cast<uint64_t>(st.st_size) < extent.stored_end)
        fail(EMOE_ERR_FORMAT, "the shell `%s` is truncated", path.c_str());
    return extent;
}

ShellLoad::ShellLoad(const std::string &path, ShellExtent extent) : extent_(extent) {
    fd_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd_ < 0) fail(EMOE_ERR_IO, "cannot open the shell `%s`: %s", path.c_str(), os_message(errno).c_str());
    while (flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
    }
    if (ftruncate(fd_, static_cast<off_t>(extent_.full_end)) != 0) {
        int const e = errno;
        close(fd_);
        fail(EMOE_ERR_IO, "cannot lengthen the shell `%s` to %llu bytes: %s", path.c_str(),
             static_cast<unsigned long long>(extent_.full_end), os_message(e).c_str());
    }
}

ShellLoad::~ShellLoad() {
    shorten();
    close(fd_);
}

void ShellLoad::shorten() const { (void)!ftruncate(fd_, static_cast<off_t>(extent_.stored_end)); }

void ShellLoad::lengthen() const { (void)!ftruncate(fd_, static_cast<off_t>(extent_.full_end)); }

void ShellLoad::drop_pages() const {
#ifdef POSIX_FADV_DONTNEED
    (void)posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
#endif
}

} // namespace emoe
