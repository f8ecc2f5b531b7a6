// What this process and this machine are: memory, cores.
#pragma once

#include <cstdint>
#include <string>

namespace emoe {

// Cores that this process may run on, hardware threads of one core counted once; at least 1.
uint32_t physical_cores();

// Bytes of RAM, 0 where unknown.
uint64_t machine_bytes();

// Gives freed memory back to the system. glibc keeps it otherwise.
void trim_heap();

// Changes whenever this library does: for what was measured with it.
std::string library_stamp();

} // namespace emoe
