#include "base/machine.h"
#include "base/windows.h"

#include <algorithm>
#include <thread>

#include <malloc.h>
#include <psapi.h>

namespace emoe {

void read_memory(const std::string &, Machine *m) {
    MEMORYSTATUSEX status = {};
    status.dwLength = sizeof status;
    if (!GlobalMemoryStatusEx(&status)) return;
    m->total_bytes = status.ullTotalPhys;
    m->available_bytes = std::min(status.ullAvailPhys, status.ullAvailPageFile);
}

// Of a hybrid processor those of the fastest kind: a slow one would make all others wait at every barrier.
uint32_t physical_cores() {
    DWORD bytes = 0;
    (void)GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
    std::vector<char> data(bytes);
    auto const at = [&data](DWORD i) {
        return reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *>(data.data() + i);
    };
    DWORD_PTR allowed = 0, machine = 0;
    if (bytes == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, at(0), &bytes))
        return std::max(1u, std::thread::hardware_concurrency());
    if (!GetProcessAffinityMask(GetCurrentProcess(), &allowed, &machine)) allowed = 0; // of several groups
    uint32_t n = 0;
    BYTE fastest = 0;
    for (DWORD i = 0; i < bytes; i += at(i)->Size) {
        PROCESSOR_RELATIONSHIP const &core = at(i)->Processor;
        if (allowed != 0 && (core.GroupMask[0].Mask & allowed) == 0) continue;
        BYTE const speed = reinterpret_cast<const BYTE *>(&core)[1]; // EfficiencyClass, which older headers do not name
        if (speed > fastest) n = 0;
        if (speed >= fastest) n++;
        fastest = std::max(fastest, speed);
    }
    return std::max(1u, n);
}

uint64_t rss_bytes() { return process_memory().rss_bytes; }

ProcessMemory process_memory() {
    ProcessMemory p;
    PROCESS_MEMORY_COUNTERS_EX info = {};
    info.cb = sizeof info;
    if (!K32GetProcessMemoryInfo(GetCurrentProcess(), reinterpret_cast<PROCESS_MEMORY_COUNTERS *>(&info), sizeof info))
        return p;
    p.rss_bytes = info.WorkingSetSize;
    p.peak_bytes = info.PeakWorkingSetSize;
    p.data_bytes = info.PrivateUsage; // what a job's limit counts
    return p;
}

std::vector<ProcessLimit> process_limits(const ProcessMemory &now) {
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION job = {};
    if (!QueryInformationJobObject(nullptr, JobObjectExtendedLimitInformation, &job, sizeof job, nullptr)) return {};
    std::vector<ProcessLimit> limits;
    DWORD const flags = job.BasicLimitInformation.LimitFlags;
    if (flags & JOB_OBJECT_LIMIT_PROCESS_MEMORY) limits.push_back({job.ProcessMemoryLimit, now.data_bytes});
    if (flags & JOB_OBJECT_LIMIT_JOB_MEMORY) limits.push_back({job.JobMemoryLimit, now.data_bytes});
    return limits;
}

void trim_heap() { (void)_heapmin(); }

} // namespace emoe
