// How fast this machine reads and multiplies, through the code that will do it.
#pragma once

#include <edgemoe.h>

#include <string>

namespace emoe {

emoe_storage_speed measure_storage(const std::string &path, uint64_t block_bytes, uint32_t n_lane, uint64_t max_bytes,
                                   uint64_t max_ns);
uint64_t measure_compute(const std::string &type, uint32_t n_thread, uint64_t max_ns);

} // namespace emoe
