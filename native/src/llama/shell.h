// The shell: a GGUF that stock llama.cpp loads without seeing a byte of any expert.
//
// Same metadata, dense tensors first with their data, expert tensors declared last. The file ends after the dense
// data; only while llama.cpp opens it is it lengthened to the declared size (a hole), and shortened again before the
// mapping, so that MAP_POPULATE stops at the end of the dense data instead of filling the hole with zero pages.
#pragma once

#include "llama/index.h"

#include <cstdint>
#include <string>

namespace emoe {

// Where the data of a shell ends, and where its declared tensors do.
struct ShellExtent {
    uint64_t dense_end = 0;
    uint64_t full_end = 0;
};

// Throws EMOE_ERR_IO. Temporary name, fsync, rename.
void write_shell(const ModelIndex &index, const std::string &path, bool with_data);

// Throws when the file is not this model's shell. need_data: one written without data does not do.
ShellExtent check_shell(const ModelIndex &index, const std::string &path, bool need_data);

// Holds the shell open, lengthened and locked against other processes that load it.
class ShellLoad {
public:
    ShellLoad(const std::string &path, ShellExtent extent);
    ~ShellLoad(); // shortens, unlocks
    ShellLoad(const ShellLoad &) = delete;
    ShellLoad &operator=(const ShellLoad &) = delete;
    void shorten() const;
    void lengthen() const;   // again, where llama.cpp copies what is declared (experts of a GPU): zeros
    void drop_pages() const; // of the page cache

private:
    int fd_ = -1;
    ShellExtent extent_;
};

} // namespace emoe
