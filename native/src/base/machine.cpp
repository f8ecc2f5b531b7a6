// What is the same on every system; the rest is machine_posix.cpp and machine_windows.cpp.
#include "base/machine.h"

#include "base/cgroups.h"

#include <algorithm>

namespace emoe {

namespace {

void lower(uint64_t *value, uint64_t limit) { *value = std::min(*value, limit); }

} // namespace

Machine machine(const std::string &root) {
    Machine m;
    m.n_core = physical_cores();
    m.process = process_memory();
    read_memory(root, &m);
    m.limit_bytes = m.total_bytes;
    for (CgroupLimit const &group : cgroup_limits(root)) {
        lower(&m.limit_bytes, group.limit_bytes);
        lower(&m.available_bytes, group.limit_bytes - std::min(group.limit_bytes, group.used_bytes));
    }
    for (ProcessLimit const &limit : process_limits(m.process)) {
        // As memory that may be resident: what is counted and not resident takes of it too.
        uint64_t const idle = limit.used_bytes - std::min(limit.used_bytes, m.process.rss_bytes);
        lower(&m.limit_bytes, limit.limit_bytes - std::min(limit.limit_bytes, idle));
        lower(&m.available_bytes, limit.limit_bytes - std::min(limit.limit_bytes, limit.used_bytes));
    }
    return m;
}

uint64_t cgroup_limit_bytes(const std::string &root) {
    Machine m;
    read_memory(root, &m);
    uint64_t least = m.total_bytes;
    for (CgroupLimit const &group : cgroup_limits(root)) lower(&least, group.limit_bytes);
    return least < m.total_bytes ? least : 0;
}

} // namespace emoe
