// What a calibration says of the text that it was made of, a task: how often its tokens use each expert.
#pragma once

#include "llama/index.h"

namespace emoe {

// A file of `edgemoe calibrate`, headers only. Throws EMOE_ERR_IO, EMOE_ERR_FORMAT.
GgufPtr open_calibration(const std::string &path);

// Of each expert, all layers in turn: the share of the calibration's tokens that used it; 0 in layers that it does not
// know. Throws EMOE_ERR_IO, EMOE_ERR_FORMAT when it is of another model.
std::vector<float> load_uses(const ModelIndex &index, const std::string &path);

} // namespace emoe
