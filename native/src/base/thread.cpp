#include "base/thread.h"

#ifdef __linux__

#include <cstdint>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace emoe {

namespace {
// struct sched_attr of sched_setattr(2), which glibc declares only from 2.41 on.
struct SchedAttr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};
constexpr uint64_t k_slice_ns = 100000; // the least that the kernel takes
} // namespace

void prefer_short_turns() {
#ifdef SYS_sched_setattr
    SchedAttr attr = {};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 || attr.policy != SCHED_OTHER) return;
    attr.size = sizeof attr;
    attr.runtime = k_slice_ns;
    (void)syscall(SYS_sched_setattr, 0, &attr, 0);
#endif
}

void sleep_exactly() { (void)prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }

} // namespace emoe

#else

namespace emoe {
void prefer_short_turns() {}
void sleep_exactly() {}
} // namespace emoe

#endif
