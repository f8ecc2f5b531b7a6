// Whether threads that wait for each other should spin or sleep.
//
// Spinning wakes soonest, as long as the thread that is waited for runs. When something else has its CPU, those that spin
// keep it from coming back: beside busy programs a token then takes seconds (docs/experiments/spin-adaptive.md). So
// threads spin while there is a CPU for each of them, and sleep otherwise.
#pragma once

#include <cstdint>

namespace emoe {

// Of a process's CPUs, from one look to the next.
struct CpuLook {
    uint64_t n_ns = 0;       // between the looks
    uint64_t delayed_ns = 0; // for which its threads were ready and had no CPU, summed over them
    double n_other = 0;      // CPUs that were busy for others, on an average
};

// The pure part.
class SpinRule {
public:
    SpinRule(uint32_t n_threads, uint32_t n_cpu) : n_threads_(n_threads), n_cpu_(n_cpu) {}
    // Whether to sleep from now on.
    bool next(const CpuLook &look);
    bool sleeps() const { return sleeps_; }

private:
    uint32_t const n_threads_, n_cpu_;
    bool sleeps_ = false;      // the first look finds out, in a tenth of a second: sleeping costs a quiet machine more
    uint64_t since_ns_ = 0;    // that it spins or sleeps
    uint64_t patience_ns_ = 0; // asleep: until spinning is tried again
};

// What the system tells of this process and the others.
class CpuWatch {
public:
    CpuWatch();
    bool knows() const { return knows_; } // false on systems that do not tell: other than Linux
    CpuLook look();                       // since the last

private:
    bool knows_ = false;
    // Of use where the system tells. counted, busy, own: at the last look at the others.
    [[maybe_unused]] uint64_t looked_ns_ = 0, delayed_ns_ = 0;
    [[maybe_unused]] uint64_t counted_ns_ = 0, busy_ns_ = 0, own_ns_ = 0;
    [[maybe_unused]] double n_other_ = 0;
};

} // namespace emoe
