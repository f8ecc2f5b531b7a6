// Shared libraries, and the file that this one is in.
#pragma once

#include <filesystem>

namespace emoe {

// A shared library, open as long as this is.
class Module {
public:
    // known: only one that the process has loaded already.
    Module(const std::filesystem::path &path, bool known);
    ~Module();
    Module(const Module &) = delete;
    Module &operator=(const Module &) = delete;

    bool loaded() const { return handle_ != nullptr; }
    template <typename Function>
    Function *function(const char *name) const {
        return handle_ ? reinterpret_cast<Function *>(symbol(name)) : nullptr;
    }

private:
    void *symbol(const char *name) const;

    void *handle_ = nullptr;
};

// The file with this function in it; empty where the system does not say.
std::filesystem::path file_of(const void *function);

} // namespace emoe
