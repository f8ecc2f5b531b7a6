// How a model's maker recommends to pick tokens.
#pragma once

#include "llama/index.h"

#include <edgemoe.h>

namespace emoe {

// See edgemoe.h. index: null for llama.cpp's own values.
emoe_recommendation recommendation(const ModelIndex *index);

} // namespace emoe
