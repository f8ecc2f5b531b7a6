#include "base/module.h"

#include <dlfcn.h>

namespace emoe {

Module::Module(const std::filesystem::path &path, bool known)
    : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | (known ? RTLD_NOLOAD : 0))) {}

Module::~Module() {
    if (handle_) dlclose(handle_);
}

void *Module::symbol(const char *name) const { return dlsym(handle_, name); }

std::filesystem::path file_of(const void *function) {
    Dl_info info = {};
    return dladdr(function, &info) != 0 && info.dli_fname ? info.dli_fname : "";
}

} // namespace emoe
