// From what is asked to a plan: the defaults of a setup, the sizes of a model's contexts, the limits of the machine.
#pragma once

#include "budget/planner.h"
#include "llama/index.h"

#include <edgemoe.h>

#include <string>

namespace emoe {

// The plan for any model. process_bytes: of the process before it is loaded. known: gets budget_bytes,
// smallest_bytes and resident_bytes as far as they are known when something is thrown.
emoe_plan plan_with(const emoe_model_info &model, const Sizes &sizes, const emoe_setup &setup, uint64_t process_bytes,
                    emoe_plan *known);

// The plan for a GGUF. cache_dir: see Shells. Throws BudgetError, and what measuring throws.
emoe_plan plan_gguf(const ModelIndex &index, const std::string &cache_dir, const emoe_setup &setup, emoe_plan *known);

} // namespace emoe
