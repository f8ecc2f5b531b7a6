// Keeps the process inside its budget by resizing the expert cache: everything else takes what it takes.
#pragma once

#include "budget/planner.h"

#include <functional>
#include <mutex>

namespace emoe {

class Allowance {
public:
    using Resize = std::function<void(uint64_t cache_bytes)>;
    using Resident = std::function<uint64_t()>;

    // Made when everything but the cache's content is in place, and gives the cache what is really left.
    // untouched_bytes: will be resident, but is not yet. Throws BudgetError.
    Allowance(const emoe_plan &plan, const emoe_model_info &model, uint64_t untouched_bytes, Resize resize,
              Resident resident);

    emoe_plan plan() const;

    // Divides a new budget. Throws BudgetError, and changes nothing, if it is too small for what is loaded.
    void spend(uint64_t budget_bytes);
    // EMOE_MEMORY_*: what the cache gives up until the next warning says otherwise.
    void warn(uint32_t level);
    // Shrinks the cache if the process has grown far into the margin: the app's own data, libraries. It gets that back
    // when the process has shrunk again.
    void check();
    // f is about to take up to n_bytes: the cache gives way first, and gets back what was not taken. Throws
    // BudgetError when the cache and half of the margin cannot give that much.
    template <typename F>
    void growing(uint64_t n_bytes, const char *what, F &&f) {
        uint64_t const before = give_way(n_bytes, what);
        try {
            f();
        } catch (...) {
            try { // what went wrong first is what is told
                take_back(before, n_bytes);
            } catch (const std::exception &) {
            }
            throw;
        }
        take_back(before, n_bytes);
    }
    // The two halves of it, for hosts that cannot pass a function. give_way returns the resident bytes for take_back; with
    // 0 in their place nothing is taken to have stayed.
    uint64_t give_way(uint64_t n_bytes, const char *what);
    void take_back(uint64_t before, uint64_t n_bytes);

private:
    uint64_t allowed_cache(uint64_t budget_bytes) const;
    void grow(int64_t n_bytes);
    void note(uint64_t budget_bytes, uint64_t cache_bytes);

    mutable std::recursive_mutex mutex_; // the public functions call each other
    emoe_plan plan_;
    emoe_model_info const model_;
    Resize const resize_;
    Resident const resident_;
    int64_t fixed_bytes_;     // all but the cache and the margin
    int64_t found_bytes_ = 0; // of it, what `check` found and nobody had asked for
    uint32_t level_ = EMOE_MEMORY_NORMAL;
};

} // namespace emoe
