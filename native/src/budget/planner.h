// Decides how a memory budget is spent: runtime/planner.py for hosts without Python, rule by rule.
// Pure: the same model, sizes and budget give the same plan. tests/test_session_plan.py holds the two together.
#pragma once

#include "base/error.h"

#include <edgemoe.h>

#include <functional>

namespace emoe {

// What a context of (n_ctx, n_ubatch) allocates.
using Sizes = std::function<emoe_context_sizes(uint32_t n_ctx, uint32_t n_ubatch)>;

struct Budget {
    uint64_t bytes = 0;         // the whole process
    uint64_t process_bytes = 0; // of it, before the model is loaded
    uint32_t n_threads = 1;
    uint32_t n_ctx = 0;    // 0: chosen
    uint32_t n_ubatch = 0; // 0: chosen
};

// The budget is too small.
class BudgetError : public Error {
public:
    BudgetError(uint64_t smallest, const std::string &message)
        : Error(EMOE_ERR_MEMORY, message), smallest_bytes(smallest) {}
    const uint64_t smallest_bytes;
};

// Throws BudgetError.
emoe_plan make_plan(const emoe_model_info &model, const Sizes &sizes, const Budget &budget);

// What is left free of a budget: 12 MiB, or 1.5 % of it if that is more.
uint64_t margin_bytes(uint64_t budget_bytes);
// All but the expert cache and the margin.
uint64_t fixed_bytes(const emoe_plan &plan);
// The smallest cache: it must be able to lend the largest batch its work space.
uint64_t cache_min_bytes(const emoe_plan &plan);
// cache_bytes with what follows from it.
void note_cache(emoe_plan *plan, const emoe_model_info &model, uint64_t cache_bytes);

// "183 MiB (191889408 bytes)": rounded up for people, exact for programs.
std::string format_bytes(uint64_t bytes);

} // namespace emoe
