// How llama.cpp's threads wait for each other at its barriers: SpinRule's decision, carried out.
//
// Those of a build with libgomp spin for milliseconds, which is read from the environment when libgomp is loaded, here or
// never. But it spins for microseconds only while the process has more threads of OpenMP than CPUs (its manual,
// GOMP_SPINCOUNT). So a team of threads that do nothing but sleep makes all others sleep early, and its end lets them
// spin again. Other builds of llama.cpp are left as they are.
#pragma once

#include "base/spin.h"

#include <condition_variable>
#include <mutex>
#include <thread>

namespace emoe {

class Waiting {
public:
    explicit Waiting(uint32_t n_threads);
    ~Waiting();
    Waiting(const Waiting &) = delete;
    Waiting &operator=(const Waiting &) = delete;

    // Around each graph, so that a look in the middle of it can end a spin that nobody gains by.
    void begin();
    void end();

private:
    void watch(); // a thread of its own, that sleeps while nothing is computed
    void look();
    void park(); // the idle team
    void unpark();

    uint32_t const n_threads_;
    SpinRule rule_;
    CpuWatch cpus_;
    std::mutex mutex_; // guards the next three
    std::condition_variable changed_;
    uint32_t n_graph_ = 0; // begun
    bool computes_ = false, ends_ = false;
    std::thread watcher_;
    // Of the watcher alone.
    std::thread parked_;
    std::mutex park_mutex_; // guards the next
    std::condition_variable park_changed_;
    bool park_ends_ = false;
};

} // namespace emoe
