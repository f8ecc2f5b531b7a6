// A model's facts as edgemoe.h gives them.
#pragma once

#include "llama/index.h"

#include <edgemoe.h>

namespace emoe {

emoe_model_info model_info(const ModelIndex &index);
// index: of the mixture layers. Throws EMOE_ERR_ARGUMENT.
emoe_layer_info layer_info(const ModelIndex &index, uint32_t layer);

// The model as the host sees it when a GPU has the experts that a setup names. Throws EMOE_ERR_ARGUMENT.
emoe_model_info host_info(const ModelIndex &index, const emoe_setup &setup);

} // namespace emoe
