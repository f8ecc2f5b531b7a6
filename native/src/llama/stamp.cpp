#include "llama/stamp.h"

#include "base/error.h"
#include "base/module.h"
#include "base/paths.h"
#include "io/file.h"
#include "llama/cpu.h"

#include <edgemoe.h>

#include <ggml.h>

#include <cstdio>

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
    FileStamp file;
    if (stamp_of(text_of(file_of(reinterpret_cast<void *>(&emoe_abi_version))), &file)) {
        char text[96];
        snprintf(text, sizeof text, "; %llu bytes of %lld", static_cast<unsigned long long>(file.size),
                 static_cast<long long>(file.modified_ns / 1000000000));
        stamp += text;
    }
    return stamp;
}

} // namespace emoe
