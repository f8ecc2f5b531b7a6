#include "base/module.h"
#include "base/windows.h"

namespace emoe {

Module::Module(const std::filesystem::path &path, bool known) {
    HMODULE module = nullptr;
    if (known)
        (void)GetModuleHandleExW(0, path.c_str(), &module);
    else // what it needs lies beside it
        module = LoadLibraryExW(path.c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
    handle_ = module;
}

Module::~Module() {
    if (handle_) FreeLibrary(static_cast<HMODULE>(handle_));
}

void *Module::symbol(const char *name) const {
    return reinterpret_cast<void *>(GetProcAddress(static_cast<HMODULE>(handle_), name));
}

std::filesystem::path file_of(const void *function) {
    HMODULE module = nullptr;
    wchar_t name[4096] = L"";
    if (!GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
                            static_cast<const wchar_t *>(function), &module))
        return {};
    DWORD const n = GetModuleFileNameW(module, name, 4096);
    return n > 0 && n < 4096 ? std::filesystem::path(name) : std::filesystem::path();
}

} // namespace emoe
