// The shell: a GGUF that stock llama.cpp loads without seeing a byte of any expert.
//
// Same metadata, dense tensors declared first, expert tensors last. Only while llama.cpp opens it is it lengthened to
// the declared size (a hole), and shortened again before the mapping, so that MAP_POPULATE does not fill the hole with
// zero pages. The data of dense tensors is in it only for a GPU, which llama.cpp fills from the mapping; else it is read
// from the model's own files (llama/dense.h), and the shell is a few megabytes of memory for as long as loading takes.
#pragma once

#include "io/writable.h"
#include "llama/index.h"

#include <edgemoe.h>

#include <cstdint>
#include <string>
#include <vector>

namespace emoe {

// Where the parts of a shell are, in bytes from its beginning.
struct ShellExtent {
    uint64_t stored_end = 0;     // what is really there: metadata, and with data the dense tensors
    uint64_t dense_end = 0;      // of the declared dense tensors
    uint64_t full_end = 0;       // of all declared tensors
    std::vector<uint64_t> dense; // where each dense tensor is declared, as in ModelIndex
};

// Whether a shell can be a file in memory, without data: where the system says what is mapped where.
constexpr bool k_memory_shells = k_files_in_memory;
// Whether a shell must have the data of dense tensors, and so be a file: a GPU is filled from it.
inline bool shell_needs_data(const emoe_setup &setup) { return setup.device != 0 || !k_memory_shells; }

// Throws EMOE_ERR_IO. Temporary name, fsync, rename.
void write_shell(const ModelIndex &index, const std::string &path, bool with_data);

// Throws when the file is not this model's shell. need_data: one written without data does not do.
ShellExtent check_shell(const ModelIndex &index, const std::string &path, bool need_data);

// A shell without data in memory: no file is written. Throws EMOE_ERR_IO, EMOE_ERR_UNSUPPORTED where a system has none.
class MemoryShell {
public:
    explicit MemoryShell(const ModelIndex &index);
    const std::string &path() const { return file_.path(); } // that opens it, in this process

private:
    static WritableFile in_memory();
    WritableFile file_;
};

// Holds the shell open, lengthened and locked against other processes that load it.
class ShellLoad {
public:
    ShellLoad(const std::string &path, ShellExtent extent);
    ~ShellLoad(); // shortens, unlocks
    ShellLoad(const ShellLoad &) = delete;
    ShellLoad &operator=(const ShellLoad &) = delete;
    void shorten() const;
    void lengthen() const; // again, where llama.cpp copies what is declared (experts of a GPU): zeros
    void drop_pages() const { file_.drop_pages(); }

private:
    void try_resize(uint64_t bytes) const;

    WritableFile file_;
    ShellExtent extent_;
};

} // namespace emoe
