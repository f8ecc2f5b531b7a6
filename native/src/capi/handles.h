// The handles of edgemoe.h that more than one file of this folder looks into. A handle has one nature.
#pragma once

#include "base/guard.h"
#include "engine/engine.h"
#include "llama/collect.h"
#include "llama/index.h"
#include "llama/vocabulary.h"

#include <edgemoe.h>

#include <memory>
#include <vector>

struct emoe_model {
    std::unique_ptr<emoe::ModelIndex> index;
};

// A vocabulary and the logits that are sampled from: an engine's, or one whose logits somebody else computes.
struct emoe_text {
    const emoe::TextModel *model = nullptr;
    std::unique_ptr<emoe::Vocabulary> own; // null for that of an engine
};

struct emoe_engine {
    std::unique_ptr<emoe::Collector> collector; // outlives the engine, which may be told of it
    std::unique_ptr<emoe::SkipTrial> trial;     // likewise
    std::unique_ptr<emoe::Engine> engine;
    mutable std::vector<emoe_text> texts; // by sequence
};

namespace emoe {

// The engine behind a handle. Throws EMOE_ERR_ARGUMENT for null.
inline Engine &engine_of(const emoe_engine *engine) {
    if (!engine) fail(EMOE_ERR_ARGUMENT, "engine is null");
    return *engine->engine;
}

// A copy of what is asked for, as far as loading reads it, with its defaults and its limits checked: emoe_setup has
// them in one place. shaped: n_ctx, n_ubatch and n_threads must be given.
emoe_setup read_setup(const emoe_setup *setup, bool shaped);

// How a budget is asked for. Throws EMOE_ERR_ARGUMENT.
void check_memory(uint32_t kind, uint64_t memory);

// What make(&known) returns; where it throws, what is known by then: smallest and resident. to: null for nobody's.
template <typename F>
void write_plan(emoe_plan *to, F &&make) {
    emoe_plan known = {};
    try {
        known = make(&known);
    } catch (const Error &) {
        if (to) write_struct(to, known);
        throw;
    }
    if (to) write_struct(to, known);
}

} // namespace emoe
