#include "base/spin.h"

#include "base/clock.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>

#ifdef __linux__
#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace emoe {

namespace {

constexpr uint64_t k_ms = 1000000;
// A thread in 20 that waits for a CPU keeps all the others waiting at the next barrier.
constexpr uint64_t k_busy_percent = 5;
// What the system itself does now and then.
constexpr double k_spare_cpu = 0.25;
// Spinning that went well for so long was no mistake.
constexpr uint64_t k_calm_ns = 2000 * k_ms;
// After a mistake: until it is tried again, twice as long each time.
constexpr uint64_t k_first_ns = 250 * k_ms, k_longest_ns = 60000 * k_ms;

} // namespace

bool SpinRule::next(const CpuLook &look) {
    since_ns_ += look.n_ns;
    if (sleeps_) {
        if (since_ns_ < patience_ns_ || look.n_other + n_threads_ > n_cpu_ + k_spare_cpu) return true;
        sleeps_ = false;
    } else if (look.delayed_ns * 100 > look.n_ns * n_threads_ * k_busy_percent) {
        bool const calm = since_ns_ > k_calm_ns || patience_ns_ == 0;
        patience_ns_ = calm ? k_first_ns : std::min(2 * patience_ns_, k_longest_ns);
        sleeps_ = true;
    } else {
        return false;
    }
    since_ns_ = 0;
    return sleeps_;
}

#ifdef __linux__

namespace {

// The kernel counts CPUs' time in hundredths of a second: over less than this, too coarsely.
constexpr uint64_t k_count_ns = 250 * k_ms;

bool delays(uint64_t *sum_ns) {
    *sum_ns = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return false;
    uint32_t n_told = 0;
    while (dirent const *task = readdir(tasks)) {
        char path[300];
        uint64_t ran = 0, delayed = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", task->d_name);
        FILE *f = task->d_name[0] == '.' ? nullptr : fopen(path, "r");
        if (!f) continue; // ended meanwhile
        if (fscanf(f, "%" SCNu64 " %" SCNu64, &ran, &delayed) == 2) n_told++;
        fclose(f);
        *sum_ns += delayed;
    }
    closedir(tasks);
    return n_told != 0;
}

// Of all CPUs together: what runs, and what a hypervisor took.
bool busy_time(uint64_t *ns) {
    FILE *f = fopen("/proc/stat", "r");
    if (!f) return false;
    uint64_t user, nice, system, idle, iowait, irq, softirq, steal;
    int const n =
        fscanf(f, "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64,
               &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal);
    fclose(f);
    *ns = (user + nice + system + irq + softirq + steal) * (1000 * k_ms / static_cast<uint64_t>(sysconf(_SC_CLK_TCK)));
    return n == 8;
}

uint64_t own_time() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    auto const ns = [](const timeval &t) {
        return static_cast<uint64_t>(t.tv_sec) * 1000 * k_ms + static_cast<uint64_t>(t.tv_usec) * 1000;
    };
    return ns(usage.ru_utime) + ns(usage.ru_stime);
}

} // namespace

CpuWatch::CpuWatch() {
    knows_ = delays(&delayed_ns_) && busy_time(&busy_ns_);
    own_ns_ = own_time();
    looked_ns_ = counted_ns_ = now_ns();
    n_other_ = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN)); // until it is known
}

CpuLook CpuWatch::look() {
    uint64_t const now = now_ns();
    CpuLook look;
    look.n_ns = now - looked_ns_;
    uint64_t delayed = 0;
    (void)delays(&delayed);
    look.delayed_ns = delayed - std::min(delayed, delayed_ns_); // a thread that ended took its part of the sum with it
    looked_ns_ = now;
    delayed_ns_ = delayed;
    uint64_t busy = 0;
    if (now - counted_ns_ >= k_count_ns && busy_time(&busy)) {
        uint64_t const own = own_time();
        double const others = static_cast<double>(busy - busy_ns_) - static_cast<double>(own - own_ns_);
        n_other_ = std::max(0.0, others / static_cast<double>(now - counted_ns_));
        counted_ns_ = now;
        busy_ns_ = busy;
        own_ns_ = own;
    }
    look.n_other = n_other_;
    return look;
}

#else

CpuWatch::CpuWatch() = default;
CpuLook CpuWatch::look() { return {}; }

#endif

} // namespace emoe
