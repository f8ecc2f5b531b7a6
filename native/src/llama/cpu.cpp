#include "llama/cpu.h"

#include "base/error.h"
#include "llama/log.h"

#include <ggml-backend.h>
#include <llama.h>

#include <edgemoe.h>

#include <dlfcn.h>

#ifdef EMOE_BUNDLED
#include <filesystem>
#endif

namespace emoe {

#ifdef EMOE_BUNDLED

namespace {

namespace fs = std::filesystem;

// Beside the library that this code is in, and nowhere else: ggml itself would look into the current directory.
fs::path own_folder() {
    Dl_info info = {};
    if (dladdr(reinterpret_cast<void *>(&emoe_abi_version), &info) == 0 || !info.dli_fname)
        fail(EMOE_ERR_INTERNAL, "the system does not say where libedgemoe is");
    return fs::absolute(info.dli_fname).parent_path();
}

class Library {
public:
    Library(const fs::path &path, int flags) : handle_(dlopen(path.c_str(), flags | RTLD_NOW | RTLD_LOCAL)) {}
    ~Library() {
        if (handle_) dlclose(handle_);
    }
    Library(const Library &) = delete;
    Library &operator=(const Library &) = delete;

    bool loaded() const { return handle_ != nullptr; }
    template <typename Function>
    Function *function(const char *name) const {
        return handle_ ? reinterpret_cast<Function *>(dlsym(handle_, name)) : nullptr;
    }

private:
    void *handle_;
};

// By ggml's own scores: 0 where the processor lacks an instruction, more for more of them.
fs::path best_backend(const fs::path &folder) {
    int best = 0;
    fs::path found;
    std::error_code ignored;
    for (fs::directory_entry const &entry : fs::directory_iterator(folder, ignored)) {
        std::string const name = entry.path().stem().string();
        if (name != "libggml-cpu" && name.rfind("libggml-cpu-", 0) != 0) continue;
        Library const library(entry.path(), 0);
        if (!library.loaded()) continue;
        auto *const score_of = library.function<int()>("ggml_backend_score");
        int const score = score_of ? score_of() : 1; // one for every processor of the kind has none
        if (score <= best) continue;
        best = score;
        found = entry.path();
    }
    if (best == 0)
        fail(EMOE_ERR_UNSUPPORTED, "`%s` has no libggml-cpu that this processor can run", folder.string().c_str());
    return found;
}

CpuBackend start() {
    fs::path const path = best_backend(own_folder());
    LogCapture const quiet; // ggml says on stderr what it loads
    if (!ggml_backend_load(path.string().c_str()))
        fail(EMOE_ERR_UNSUPPORTED, "`%s` cannot be loaded", path.string().c_str());
    llama_backend_init(); // after it: with no backend it would look for some
    Library const library(path, RTLD_NOLOAD);
    CpuBackend const backend = {
        library.function<std::remove_pointer_t<decltype(CpuBackend::type_traits)>>("ggml_get_type_traits_cpu"),
        library.function<std::remove_pointer_t<decltype(CpuBackend::graph_plan)>>("ggml_graph_plan"),
        library.function<std::remove_pointer_t<decltype(CpuBackend::graph_compute)>>("ggml_graph_compute"),
        path.stem().string().substr(3),
    };
    if (!backend.type_traits || !backend.graph_plan || !backend.graph_compute)
        fail(EMOE_ERR_INTERNAL, "`%s` lacks a function of ggml's", path.string().c_str());
    return backend;
}

} // namespace

void check_processor() {} // ggml's scores do it

#else

namespace {

CpuBackend start() {
    check_processor();
    llama_backend_init();
    (void)ggml_backend_dev_count(); // registers the backends, which prepares the tables of their kernels
    return {ggml_get_type_traits_cpu, ggml_graph_plan, ggml_graph_compute, "ggml-cpu"};
}

} // namespace

#endif

const CpuBackend &cpu() {
    static CpuBackend const backend = start();
    return backend;
}

} // namespace emoe
