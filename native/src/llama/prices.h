// What leaving out a model's experts costs, read from its own metadata or from the calibration beside it.
#pragma once

#include "llama/index.h"
#include "pipeline/price.h"

namespace emoe {

// Of the keys edgemoe.lossy.* (docs/format.md) in the model, else in FILE.calibration. Throws EMOE_ERR_UNSUPPORTED and how
// to make one when neither has them, EMOE_ERR_FORMAT when they are no prices of this model.
Prices load_prices(const ModelIndex &index);

} // namespace emoe
