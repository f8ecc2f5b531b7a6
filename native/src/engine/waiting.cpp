#include "engine/waiting.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace emoe {

namespace {

// Between two looks: asking after every thread takes a few microseconds each.
constexpr std::chrono::milliseconds k_look{100};

#ifdef _OPENMP

uint32_t n_cpu() { return static_cast<uint32_t>(omp_get_num_procs()); }

// libgomp ends the process when it cannot start a thread.
bool can_start(int n) {
    std::vector<std::thread> threads;
    std::mutex gate;
    bool all = true;
    {
        std::lock_guard<std::mutex> const closed(gate);
        try {
            for (int i = 0; i < n; i++) threads.emplace_back([&] { std::lock_guard<std::mutex> const open(gate); });
        } catch (const std::system_error &) {
            all = false;
        }
    }
    for (std::thread &t : threads) t.join();
    return all;
}

#else

uint32_t n_cpu() { return 1; }

#endif

} // namespace

#ifdef _OPENMP

Waiting::Waiting(uint32_t n_threads) : n_threads_(n_threads), rule_(n_threads, n_cpu()) {
    if (n_threads_ < 2) return;
    if (!cpus_.knows()) { // asleep for good
        park();
        return;
    }
    try {
        watcher_ = std::thread([this] { watch(); });
    } catch (const std::system_error &) {
        park();
    }
}

void Waiting::park() {
    // With this process's first thread and the compute threads: one more than there are CPUs.
    int const n = std::max(2, static_cast<int>(n_cpu()) + 2 - static_cast<int>(n_threads_));
    if (!can_start(n + 1)) return;
    park_ends_ = false;
    parked_ = std::thread([this, n] {
#pragma omp parallel num_threads(n)
        {
            std::atomic_signal_fence(std::memory_order_seq_cst); // an empty team is none: the compiler leaves it out
        }
        std::unique_lock<std::mutex> lock(park_mutex_);
        park_changed_.wait(lock, [this] { return park_ends_; });
    });
}

#else

Waiting::Waiting(uint32_t n_threads) : n_threads_(n_threads), rule_(n_threads, n_cpu()) {}
void Waiting::park() {}

#endif

Waiting::~Waiting() {
    if (watcher_.joinable()) {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            ends_ = true;
        }
        changed_.notify_all();
        watcher_.join();
    }
    unpark();
}

void Waiting::begin() {
    std::lock_guard<std::mutex> const lock(mutex_);
    n_graph_++;
    computes_ = true;
    if (n_graph_ == 1) changed_.notify_all(); // later it looks by itself
}

void Waiting::end() {
    std::lock_guard<std::mutex> const lock(mutex_);
    computes_ = false;
}

void Waiting::watch() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!ends_) {
        uint32_t const before = n_graph_;
        changed_.wait_for(lock, k_look, [this] { return ends_; });
        if (ends_) return;
        if (!computes_ && n_graph_ == before) { // idle: until the next graph
            n_graph_ = 0;
            changed_.wait(lock, [this] { return ends_ || n_graph_ != 0; });
            lock.unlock();
            (void)cpus_.look(); // what was while nothing was computed says nothing
            lock.lock();
            continue;
        }
        lock.unlock();
        look();
        lock.lock();
    }
}

void Waiting::look() {
    bool const sleeps = rule_.next(cpus_.look());
    if (sleeps == parked_.joinable()) return;
    if (sleeps)
        park();
    else
        unpark();
    (void)cpus_.look(); // without the team's own beginning
}

void Waiting::unpark() {
    if (!parked_.joinable()) return;
    {
        std::lock_guard<std::mutex> const lock(park_mutex_);
        park_ends_ = true;
    }
    park_changed_.notify_all();
    parked_.join();
}

} // namespace emoe
