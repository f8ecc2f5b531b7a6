// What this machine and this process are: cores, memory, and every limit that the system sets to it.
//
// Linux: /proc, cgroups of version 1 and 2, rlimits. macOS: sysctl and Mach. Windows: its counters, and the limits of the
// job that the process is in. What a system does not say is 0.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emoe {

// Memory of this process, bytes.
struct ProcessMemory {
    uint64_t rss_bytes = 0;    // resident now
    uint64_t peak_bytes = 0;   // the most that was ever resident
    uint64_t anon_bytes = 0;   // of resident: private (heap, weights, cache)
    uint64_t file_bytes = 0;   // of resident: mapped files
    uint64_t mapped_bytes = 0; // address space
    uint64_t data_bytes = 0;   // of it what RLIMIT_DATA counts
};

struct Machine {
    uint32_t n_core = 1;          // see physical_cores
    uint64_t total_bytes = 0;     // RAM
    uint64_t limit_bytes = 0;     // what this process may use at most: RAM, cgroups, rlimits
    uint64_t available_bytes = 0; // what can be had now without swapping, below every limit
    ProcessMemory process;
};

// root: "", or a folder in which proc/ and sys/ are looked for instead of / (tests).
Machine machine(const std::string &root = "");

// The smallest limit of a cgroup around this process that is below RAM, 0 for none: page cache counts into it.
uint64_t cgroup_limit_bytes(const std::string &root = "");

// Cores that this process may run on and compute with: hardware threads of one core counted once, and of a processor with
// cores of two kinds the fast ones, since a slow one would make all others wait at every barrier. At least 1.
uint32_t physical_cores();
#ifdef __linux__
// The same of these CPUs.
uint32_t physical_cores(const std::vector<uint32_t> &cpus, const std::string &root);
#endif

ProcessMemory process_memory();
// The part of it that is asked for often: cheap.
uint64_t rss_bytes();

// RAM, and what of it can be had now.
void read_memory(const std::string &root, Machine *m);

// A limit that the system sets to this process alone, and what counts towards it.
struct ProcessLimit {
    uint64_t limit_bytes;
    uint64_t used_bytes;
};
std::vector<ProcessLimit> process_limits(const ProcessMemory &now);

// Gives freed memory back to the system. glibc keeps it otherwise.
void trim_heap();

} // namespace emoe
