// The cache folder: the shell of each model, and a file of notes beside it. Whatever is lost is made anew.
//
//   shells/<identity>.gguf     the shell (llama/shell.h), where one must have data: for a GPU
//   shells/<identity>.notes    which model it is of, and what contexts of it were measured to take (store/sizes.h)
// Nobody else writes there. What lies beside a shell under its name goes with it.
#pragma once

#include "llama/index.h"

#include <filesystem>
#include <string>

namespace emoe {

class Shells {
public:
    // Makes the folder. Throws EMOE_ERR_IO. The index must live as long.
    Shells(const ModelIndex &index, const std::string &cache_dir);

    const ModelIndex &index() const { return index_; }
    std::filesystem::path const &path() const { return path_; }
    bool whole() const; // the shell is there and finished
    // Writes the shell unless it is there, and notes that it was used now. Throws EMOE_ERR_IO (disk full).
    void make() const;
    // Notes that the model was used now, and tidies the folder up: what a dead process left, notes and shells of models
    // that are gone, shells that nobody used for long.
    void note_use() const;
    std::filesystem::path beside(const char *extension) const; // "<folder>/<identity><extension>"

private:
    void prune() const;

    const ModelIndex &index_;
    std::filesystem::path path_;
};

} // namespace emoe
