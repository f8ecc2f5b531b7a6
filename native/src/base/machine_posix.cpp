#include "base/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <set>
#include <thread>
#include <utility>

#include <sys/resource.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#endif
#ifdef __APPLE__
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace emoe {

#ifdef __linux__

namespace {

// The value of a line "Name:   123 kB" in bytes; 0 when there is no such line.
uint64_t kib_field(const std::string &text, const char *name) {
    std::string const key = std::string(name) + ":";
    size_t at = text.compare(0, key.size(), key) == 0 ? 0 : text.find("\n" + key);
    if (at == std::string::npos) return 0;
    if (text[at] == '\n') at++;
    return strtoull(text.c_str() + at + key.size(), nullptr, 10) * 1024;
}

std::string file_text(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

} // namespace

#endif

#if defined(__linux__)
void read_memory(const std::string &root, Machine *m) {
    std::string const info = file_text(root + "/proc/meminfo");
    m->total_bytes = kib_field(info, "MemTotal");
    m->available_bytes = kib_field(info, "MemAvailable");
}
#elif defined(__APPLE__)
void read_memory(const std::string &, Machine *m) {
    size_t size = sizeof m->total_bytes;
    if (sysctlbyname("hw.memsize", &m->total_bytes, &size, nullptr, 0) != 0) m->total_bytes = 0;
    vm_statistics64_data_t vm = {};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&vm), &count) ==
        KERN_SUCCESS)
        m->available_bytes = (uint64_t{vm.free_count} + vm.inactive_count + vm.purgeable_count) *
                             static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}
#else
void read_memory(const std::string &, Machine *m) {
    long const pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) m->total_bytes = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
    m->available_bytes = m->total_bytes;
}
#endif

#ifdef __linux__

namespace {

// Of a list such as "0-3,8".
bool lists(const std::string &list, uint32_t cpu) {
    const char *at = list.c_str();
    for (char *end = nullptr; *at != 0; at = *end == ',' ? end + 1 : "") {
        unsigned long const first = strtoul(at, &end, 10);
        if (end == at) return false;
        unsigned long const last = *end == '-' ? strtoul(end + 1, &end, 10) : first;
        if (cpu >= first && cpu <= last) return true;
    }
    return false;
}

} // namespace

uint32_t physical_cores(const std::vector<uint32_t> &cpus, const std::string &root) {
    std::string const system = root + "/sys/devices/system/cpu/cpu";
    // Intel's two kinds have lists of their own; elsewhere the kernel says what a CPU is worth, 1024 the fastest.
    std::string const fast = file_text(root + "/sys/devices/cpu_core/cpus");
    auto const worth_of = [&](uint32_t cpu) -> uint64_t {
        if (!fast.empty()) return lists(fast, cpu) ? 1 : 0;
        std::string const text = file_text(system + std::to_string(cpu) + "/cpu_capacity");
        return text.empty() ? 1 : strtoull(text.c_str(), nullptr, 10);
    };
    uint64_t best = 0;
    std::vector<uint64_t> worth;
    for (uint32_t const cpu : cpus) {
        worth.push_back(worth_of(cpu));
        best = std::max(best, worth.back());
    }
    std::set<std::string> cores;
    for (size_t i = 0; i < cpus.size(); i++) {
        if (worth[i] * 2 < best) continue;
        std::string const cpu = std::to_string(cpus[i]);
        std::string const siblings = file_text(system + cpu + "/topology/thread_siblings_list");
        cores.insert(siblings.empty() ? "cpu" + cpu : siblings); // without topology every CPU counts
    }
    return static_cast<uint32_t>(cores.size());
}

#endif

uint32_t physical_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::vector<uint32_t> cpus;
        for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
        if (!cpus.empty()) return physical_cores(cpus, "");
    }
#elif defined(__APPLE__)
    int n = 0;
    size_t size = sizeof n;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, nullptr, 0) == 0 && n > 0) return static_cast<uint32_t>(n);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

uint64_t rss_bytes() {
#if defined(__linux__)
    unsigned long long total = 0, resident = 0;
    if (FILE *f = fopen("/proc/self/statm", "r")) {
        if (fscanf(f, "%llu %llu", &total, &resident) != 2) resident = 0;
        fclose(f);
    }
    return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
#else
    return process_memory().rss_bytes;
#endif
}

ProcessMemory process_memory() {
    ProcessMemory p;
#if defined(__linux__)
    std::string const status = file_text("/proc/self/status");
    p.rss_bytes = kib_field(status, "VmRSS");
    p.peak_bytes = kib_field(status, "VmHWM");
    p.anon_bytes = kib_field(status, "RssAnon");
    p.file_bytes = kib_field(status, "RssFile") + kib_field(status, "RssShmem");
    p.mapped_bytes = kib_field(status, "VmSize");
    p.data_bytes = kib_field(status, "VmData");
#elif defined(__APPLE__)
    // What the system holds against a process when memory is short.
    task_vm_info_data_t info = {};
    mach_msg_type_number_t count = TASK_VM_INFO_COUNT;
    if (task_info(mach_task_self(), TASK_VM_INFO, reinterpret_cast<task_info_t>(&info), &count) != KERN_SUCCESS)
        return p;
    p.rss_bytes = info.phys_footprint;
    p.peak_bytes = static_cast<uint64_t>(std::max<int64_t>(info.ledger_phys_footprint_peak, 0));
    p.mapped_bytes = info.virtual_size;
#endif
    p.peak_bytes = std::max(p.peak_bytes, p.rss_bytes);
    return p;
}

std::vector<ProcessLimit> process_limits(const ProcessMemory &now) {
    std::vector<ProcessLimit> limits;
    for (auto const &[which, used] : {std::pair{RLIMIT_AS, now.mapped_bytes}, std::pair{RLIMIT_DATA, now.data_bytes}}) {
        rlimit limit = {};
        if (getrlimit(which, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
            limits.push_back({static_cast<uint64_t>(limit.rlim_cur), used});
    }
    return limits;
}

void trim_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

} // namespace emoe
