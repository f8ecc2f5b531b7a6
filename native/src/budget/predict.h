// How fast a model will decode when a part of its experts fits. Pure.
#pragma once

#include <edgemoe.h>

namespace emoe {

// Expected hit rate of the default policy on text when a fraction (0 to 1) of the experts fits.
double hit_rate(double fraction);

emoe_prediction predict(const emoe_model_info &model, double fraction, const emoe_speeds &speeds);

} // namespace emoe
