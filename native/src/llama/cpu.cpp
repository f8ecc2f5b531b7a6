#include "llama/cpu.h"

#include "base/error.h"
#include "base/module.h"
#include "base/paths.h"
#include "llama/log.h"

#include <ggml-backend.h>
#include <llama.h>

#include <edgemoe.h>

#ifdef EMOE_BUNDLED
#include <filesystem>
#endif

namespace emoe {

#ifdef EMOE_BUNDLED

namespace {

namespace fs = std::filesystem;

// Beside the library that this code is in, and nowhere else: ggml itself would look into the current directory.
fs::path own_folder() {
    fs::path const file = file_of(reinterpret_cast<void *>(&emoe_abi_version));
    if (file.empty()) fail(EMOE_ERR_INTERNAL, "the system does not say where libedgemoe is");
    return fs::absolute(file).parent_path();
}

// "ggml-cpu-haswell": of libggml-cpu-haswell.so, or of ggml-cpu-haswell.dll.
std::string backend_name(const fs::path &path) {
    std::string const stem = text_of(path.stem());
    return stem.rfind("lib", 0) == 0 ? stem.substr(3) : stem;
}

// By ggml's own scores: 0 where the processor lacks an instruction, more for more of them.
fs::path best_backend(const fs::path &folder) {
    int best = 0;
    fs::path found;
    for (fs::path const &entry : entries_of(folder)) {
        std::string const name = backend_name(entry);
        if (name != "ggml-cpu" && name.rfind("ggml-cpu-", 0) != 0) continue;
        Module const library(entry, false);
        if (!library.loaded()) continue;
        auto *const score_of = library.function<int()>("ggml_backend_score");
        int const score = score_of ? score_of() : 1; // one for every processor of the kind has none
        if (score <= best) continue;
        best = score;
        found = entry;
    }
    if (best == 0)
        fail(EMOE_ERR_UNSUPPORTED, "`%s` has no libggml-cpu that this processor can run", text_of(folder).c_str());
    return found;
}

CpuBackend start() {
    fs::path const path = best_backend(own_folder());
    LogCapture const quiet; // ggml says on stderr what it loads
    if (!ggml_backend_load(text_of(path).c_str()))
        fail(EMOE_ERR_UNSUPPORTED, "`%s` cannot be loaded", text_of(path).c_str());
    llama_backend_init(); // after it: with no backend it would look for some
    Module const library(path, true);
    CpuBackend const backend = {
        library.function<std::remove_pointer_t<decltype(CpuBackend::type_traits)>>("ggml_get_type_traits_cpu"),
        library.function<std::remove_pointer_t<decltype(CpuBackend::graph_plan)>>("ggml_graph_plan"),
        library.function<std::remove_pointer_t<decltype(CpuBackend::graph_compute)>>("ggml_graph_compute"),
        backend_name(path),
    };
    if (!backend.type_traits || !backend.graph_plan || !backend.graph_compute)
        fail(EMOE_ERR_INTERNAL, "`%s` lacks a function of ggml's", text_of(path).c_str());
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
