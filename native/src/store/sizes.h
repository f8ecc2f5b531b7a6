// What contexts of a model allocate: asked of llama.cpp itself once a shape, remembered in the notes beside the shell.
#pragma once

#include "store/notes.h"
#include "store/shells.h"

#include <edgemoe.h>

#include <optional>

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
    struct Known {
        emoe_context_sizes sizes;
        uint64_t once_bytes; // of vocab_bytes: stays in the process, and is there when a model is loaded again
    };
    Known measure(uint32_t n_ctx, uint32_t n_ubatch);
    uint64_t vocab_bytes();
    std::string shape(uint32_t n_ctx, uint32_t n_ubatch) const;
    void save() const;

    Shells const shells_;
    emoe_setup const setup_;
    std::filesystem::path temporary_; // shell without weights, empty when none was needed
    bool const has_once_;             // this process has loaded a model before
    std::string first_;               // the shape that was measured when it had not
    uint64_t before_bytes_ = 0;       // of the process then
    std::map<std::string, Known> known_;
    std::optional<uint64_t> vocab_bytes_; // for every shape, once one is known
    bool changed_ = false;
};

} // namespace emoe
