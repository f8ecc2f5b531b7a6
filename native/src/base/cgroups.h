// Memory limits of the cgroups around this process, versions 1 and 2. None outside Linux.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emoe {

struct CgroupLimit {
    uint64_t limit_bytes;
    uint64_t used_bytes; // that cannot be reclaimed: page cache that nobody uses is not counted
};

// Of every limited memory cgroup that this process is in and can see. root: see machine.h.
std::vector<CgroupLimit> cgroup_limits(const std::string &root);

} // namespace emoe
