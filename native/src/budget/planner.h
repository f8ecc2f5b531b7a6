// Decides how a memory budget is spent. Pure: the same model, sizes, budget and limits give the same plan.
#pragma once

#include "base/error.h"
#include "base/machine.h"

#include <edgemoe.h>

#include <functional>

namespace emoe {

// What a context of (n_ctx, n_ubatch) allocates.
using Sizes = std::function<emoe_context_sizes(uint32_t n_ctx, uint32_t n_ubatch)>;

struct Budget {
    uint64_t bytes = 0;         // the whole process
    uint64_t process_bytes = 0; // of it, before the model is loaded
    uint64_t later_bytes = 0;   // and what it takes after that, out of the cache
    uint64_t picture_bytes = 0; // lent by the cache while a picture is encoded
    uint32_t n_threads = 1;
    uint32_t n_ctx = 0;    // 0: chosen
    uint32_t n_ubatch = 0; // 0: chosen
    bool rows = true;      // tables may stay in the files and be read by row
    bool scaled = false;   // RoPE is: n_ctx may be above what the model was trained for
};

// The budget is too small.
class BudgetError : public Error {
public:
    BudgetError(uint64_t smallest, const std::string &message)
        : Error(EMOE_ERR_MEMORY, message), smallest_bytes(smallest) {}
    const uint64_t smallest_bytes;
};

// What does not depend on the budget's bytes.
struct Bounds {
    uint64_t smallest_bytes; // the smallest budget that works, whole MiB
    uint64_t enough_bytes;   // the one in which every expert fits and stays, with the longest context and largest batch
};
Bounds bounds_of(const emoe_model_info &model, const Sizes &sizes, const Budget &budget);

// Bytes of a budget as it was asked for, when every expert fits in enough_bytes. Throws EMOE_ERR_ARGUMENT when that is
// more than this process may use and the model could use it.
uint64_t budget_bytes(uint32_t kind, uint64_t value, uint64_t enough_bytes, const Machine &machine);

// Throws BudgetError. bounds: of the same model and sizes.
emoe_plan make_plan(const emoe_model_info &model, const Sizes &sizes, const Budget &budget, const Bounds &bounds);

// What is left free of a budget: 12 MiB, or 1.5 % of it if that is more.
uint64_t margin_bytes(uint64_t budget_bytes);
// All but the expert cache and the margin.
uint64_t fixed_bytes(const emoe_plan &plan);
// What the cache must be able to lend: its work space to the largest batch, its memory to a picture's encoder.
uint64_t lent_bytes(const emoe_plan &plan);
// The smallest cache: what it must be able to lend, and what it cannot.
uint64_t cache_min_bytes(const emoe_plan &plan);
// cache_bytes with what follows from it.
void note_cache(emoe_plan *plan, const emoe_model_info &model, uint64_t cache_bytes);

// "183 MiB (191889408 bytes)": rounded up for people, exact for programs.
std::string format_bytes(uint64_t bytes);

} // namespace emoe
