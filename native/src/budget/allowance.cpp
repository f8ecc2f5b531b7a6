#include "budget/allowance.h"

#include <algorithm>

namespace emoe {

namespace {

// What is more than any memory is only more.
constexpr uint64_t k_most = uint64_t{1} << 60;
int64_t as_signed(uint64_t bytes) { return static_cast<int64_t>(std::min(bytes, k_most)); }

} // namespace

Allowance::Allowance(const emoe_plan &plan, const emoe_model_info &model, uint64_t untouched_bytes, Resize resize,
                     Resident resident)
    : plan_(plan), model_(model), resize_(std::move(resize)), resident_(std::move(resident)),
      fixed_bytes_(as_signed(resident_()) + as_signed(untouched_bytes)) {
    spend(plan.budget_bytes);
}

emoe_plan Allowance::plan() const {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    return plan_;
}

void Allowance::spend(uint64_t budget_bytes) {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    budget_bytes = std::min(budget_bytes, k_most);
    uint64_t const cache_bytes = allowed_cache(budget_bytes);
    resize_(cache_bytes);
    note(budget_bytes, cache_bytes);
}

void Allowance::warn(uint32_t level) {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    level_ = level;
    grow(0);
}

void Allowance::check() {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    auto const margin = static_cast<int64_t>(margin_bytes(plan_.budget_bytes));
    int64_t const excess = as_signed(resident_()) - (as_signed(plan_.budget_bytes) - margin);
    auto const spare = static_cast<int64_t>(plan_.cache_bytes - std::min(plan_.cache_bytes, cache_min_bytes(plan_)));
    // No more than the cache can give: asked again and again, it would add up to what nobody has taken.
    int64_t n_bytes = 0;
    if (excess > margin / 2) n_bytes = std::min(excess, spare);
    // A cache that is not full looks like a process that has shrunk: by halves, and what fills it is found again.
    if (excess < -margin / 2) n_bytes = -std::min(found_bytes_, -excess / 2);
    if (n_bytes == 0) return;
    found_bytes_ += n_bytes;
    grow(n_bytes);
}

uint64_t Allowance::give_way(uint64_t n_bytes, const char *what) {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    // Not what the cache has: where every expert fits, there may be room beside it.
    int64_t const left = as_signed(plan_.budget_bytes - plan_.margin_bytes) - fixed_bytes_;
    int64_t const spare =
        left - static_cast<int64_t>(cache_min_bytes(plan_)) + static_cast<int64_t>(plan_.margin_bytes / 2);
    if (as_signed(n_bytes) > spare) {
        uint64_t const needed = plan_.budget_bytes + static_cast<uint64_t>(as_signed(n_bytes) - spare);
        throw BudgetError(needed, std::string(what) + " takes up to " + format_bytes(n_bytes) + ", the budget leaves " +
                                      format_bytes(static_cast<uint64_t>(std::max<int64_t>(0, spare))) +
                                      ": a budget of " + format_bytes(needed) + " would do");
    }
    grow(as_signed(n_bytes));
    return resident_();
}

void Allowance::take_back(uint64_t before, uint64_t n_bytes) {
    std::lock_guard<std::recursive_mutex> const lock(mutex_);
    int64_t const most = as_signed(n_bytes);
    int64_t const stayed = before == 0 ? 0 : std::min(as_signed(resident_()) - as_signed(before), most);
    grow(stayed - most);
}

uint64_t Allowance::allowed_cache(uint64_t budget_bytes) const {
    uint64_t const least = cache_min_bytes(plan_), margin = margin_bytes(budget_bytes);
    int64_t const left = as_signed(budget_bytes) - as_signed(margin) - fixed_bytes_;
    // What the plan could only estimate may eat half of the margin.
    if (left < static_cast<int64_t>(least) - static_cast<int64_t>(margin / 2)) {
        uint64_t const smallest = static_cast<uint64_t>(std::max<int64_t>(0, fixed_bytes_)) + least + margin;
        throw BudgetError(smallest, "a budget of " + format_bytes(budget_bytes) + " is too small for " + model_.name +
                                        ": it takes " + format_bytes(smallest) + " here");
    }
    uint64_t const most = model_.slot_bytes + lent_bytes(plan_);
    uint64_t const whole = std::max(least, std::min(static_cast<uint64_t>(std::max<int64_t>(0, left)), most));
    switch (level_) {
    case EMOE_MEMORY_NORMAL: return whole;
    case EMOE_MEMORY_LOW: return least + (whole - least) / 2;
    default: return least;
    }
}

// The rest has grown by n_bytes, or shrunk. The cache keeps its smallest size: the margin is for that.
void Allowance::grow(int64_t n_bytes) {
    fixed_bytes_ += n_bytes;
    try {
        spend(plan_.budget_bytes);
    } catch (const BudgetError &) {
        resize_(cache_min_bytes(plan_));
        note(plan_.budget_bytes, cache_min_bytes(plan_));
    }
}

void Allowance::note(uint64_t budget_bytes, uint64_t cache_bytes) {
    int64_t const parts = static_cast<int64_t>(fixed_bytes(plan_) - plan_.process_bytes);
    plan_.budget_bytes = budget_bytes;
    plan_.process_bytes = static_cast<uint64_t>(std::max<int64_t>(0, fixed_bytes_ - parts));
    plan_.margin_bytes = margin_bytes(budget_bytes);
    note_cache(&plan_, model_, cache_bytes);
}

} // namespace emoe
