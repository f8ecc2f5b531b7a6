// The cache folder of an app: the shell of each model, and what its contexts were measured to take. The layout is that
// of runtime/shell.py, so that an app and the command line may share one folder. Whatever is lost is made anew.
#pragma once

#include "session/calls.h"
#include "budget/planner.h"

#include <filesystem>
#include <map>
#include <string>

namespace emoe {

class Shells {
public:
    // Throws EMOE_ERR_IO when the folder cannot be made.
    Shells(const emoe_model *model, const emoe_model_info &info, const std::string &cache_dir);

    std::filesystem::path const &path() const { return path_; }
    bool whole() const { return emoe_shell_check(model_, path_.c_str(), nullptr) == EMOE_OK; }
    // Writes the shell unless it is there. source: the model's file. Throws EMOE_ERR_IO (disk full).
    void make(const std::string &source) const;
    std::filesystem::path beside(const char *extension) const; // "<folder>/<identity><extension>"

private:
    void prune() const;

    const emoe_model *model_;
    emoe_model_info const info_;
    std::filesystem::path path_;
};

// What contexts of a model allocate, asked of llama.cpp itself once a shape and remembered beside the shell.
class SizeBook {
public:
    SizeBook(const emoe_model *model, const emoe_model_info &info, const Shells &shells, uint32_t n_threads,
             uint32_t kv_type);
    ~SizeBook(); // removes what it made to measure with, saves
    SizeBook(const SizeBook &) = delete;
    SizeBook &operator=(const SizeBook &) = delete;

    emoe_context_sizes operator()(uint32_t n_ctx, uint32_t n_ubatch);

private:
    emoe_context_sizes measure(uint32_t n_ctx, uint32_t n_ubatch);
    void read();
    void save() const;

    const emoe_model *model_;
    emoe_model_info const info_;
    Shells const &shells_;
    uint32_t const n_threads_;
    uint32_t const kv_type_;
    std::filesystem::path const file_;
    std::filesystem::path temporary_; // shell without weights, empty when none was needed
    std::map<std::string, emoe_context_sizes> known_;
    bool changed_ = false;
};

} // namespace emoe
