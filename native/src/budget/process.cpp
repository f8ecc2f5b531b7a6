#include "budget/process.h"

#include <edgemoe.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <dlfcn.h>
#include <set>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace emoe {

uint32_t physical_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            std::string const path =
                "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
            char siblings[128] = "";
            if (FILE *f = fopen(path.c_str(), "r")) {
                if (!fgets(siblings, sizeof siblings, f)) siblings[0] = 0;
                fclose(f);
            }
            // No topology in this container: every CPU counts.
            cores.insert(siblings[0] ? std::string(siblings) : "cpu" + std::to_string(cpu));
        }
        if (!cores.empty()) return static_cast<uint32_t>(cores.size());
    }
#elif defined(__APPLE__)
    int n = 0;
    size_t size = sizeof n;
    // The fast cores: a slow one would make all others wait at every barrier.
    if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, nullptr, 0) == 0 && n > 0) return static_cast<uint32_t>(n);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

uint64_t machine_bytes() {
#ifdef _SC_PHYS_PAGES
    long const pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) return static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
#endif
    return 0;
}

void trim_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

std::string library_stamp() {
    std::string stamp = emoe_build_info();
    Dl_info info = {};
    struct stat st = {};
    if (dladdr(reinterpret_cast<void *>(&emoe_abi_version), &info) != 0 && info.dli_fname &&
        stat(info.dli_fname, &st) == 0) {
        char text[96];
        snprintf(text, sizeof text, " %lld bytes of %lld", static_cast<long long>(st.st_size),
                 static_cast<long long>(st.st_mtime));
        stamp += text;
    }
    return stamp;
}

} // namespace emoe
