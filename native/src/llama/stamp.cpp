#include "llama/stamp.h"

#include "base/error.h"
#include "llama/cpu.h"

#include <edgemoe.h>

#include <ggml.h>

#include <cstdio>
#include <dlfcn.h>
#include <sys/stat.h>

namespace emoe {

std::string build_info() {
    std::string info = std::string("ggml ") + ggml_version() + " (" + ggml_commit() + ")";
#ifdef EMOE_BUNDLED // several kernels are in it, and what was measured is of one
    try {
        info += ", " + cpu().name;
    } catch (const Error &) {
        info += ", nothing for this processor";
    }
#endif
    return info;
}

std::string build_stamp() {
    std::string stamp = build_info();
    Dl_info info = {};
    struct stat st = {};
    if (dladdr(reinterpret_cast<void *>(&emoe_abi_version), &info) != 0 && info.dli_fname &&
        stat(info.dli_fname, &st) == 0) {
        char text[96];
        snprintf(text, sizeof text, "; %lld bytes of %lld", static_cast<long long>(st.st_size),
                 static_cast<long long>(st.st_mtime));
        stamp += text;
    }
    return stamp;
}

} // namespace emoe
