// What contexts of a model allocate: asked of llama.cpp itself once a shape, remembered in the notes beside the shell.
#pragma once

#include "store/notes.h"
#include "store/shells.h"

#include <edgemoe.h>

namespace emoe {

class SizeBook {
public:
    // setup: with n_threads. Its n_ctx and n_ubatch are not read.
    SizeBook(Shells shells, const emoe_setup &setup);
    ~SizeBook(); // removes what it made to measure with, saves
    SizeBook(const SizeBook &) = delete;
    SizeBook &operator=(const SizeBook &) = delete;

    emoe_context_sizes operator()(uint32_t n_ctx, uint32_t n_ubatch);

private:
    emoe_context_sizes measure(uint32_t n_ctx, uint32_t n_ubatch);
    std::string shape(uint32_t n_ctx, uint32_t n_ubatch) const;
    void save() const;

    Shells const shells_;
    emoe_setup const setup_;
    std::filesystem::path temporary_; // shell without weights, empty when none was needed
    std::map<std::string, emoe_context_sizes> known_;
    bool changed_ = false;
};

} // namespace emoe
