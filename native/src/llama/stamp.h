// What this library is: for reports, and for what was measured with it.
#pragma once

#include <string>

namespace emoe {

std::string build_info();  // "ggml 0.25.3 (0c1e570)"
std::string build_stamp(); // changes whenever the library's file does

} // namespace emoe
