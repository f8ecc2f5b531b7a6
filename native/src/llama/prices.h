// What leaving out a model's experts costs, read from its own metadata or from the calibration beside it.
#pragma once

#include "llama/index.h"
#include "pipeline/price.h"

namespace emoe {

// Of the keys edgemoe.lossy.* (docs/format.md) in the profile, where there is one (null: none), in the model, or in
// FILE.calibration. Throws EMOE_ERR_UNSUPPORTED and how to make one when none has them, EMOE_ERR_IO, EMOE_ERR_FORMAT when
// they are no prices of this model.
Prices load_prices(const ModelIndex &index, const char *profile);

} // namespace emoe
