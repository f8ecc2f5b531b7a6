#include "pipeline/product.h"

#include "base/pause.h"

#include <algorithm>

namespace emoe {

namespace {
// Looks before a thread sleeps, about 20 microseconds: beginning and preparing take less, a wake-up of many threads more.
constexpr int k_spin = 400;
// Draws a thread and product, when all experts are here: few enough to be cheap, enough that threads end together.
constexpr uint32_t k_draws = 4;
} // namespace

bool Product::arm() {
    bool const fresh = !armed_;
    armed_ = true;
    begun_.store(0, std::memory_order_relaxed);
    next_prepare_.store(0, std::memory_order_relaxed);
    n_prepared_.store(0, std::memory_order_relaxed);
    next_ticket_.store(0, std::memory_order_relaxed);
    n_computed_.store(0, std::memory_order_relaxed);
    last_taken_.store(false, std::memory_order_relaxed);
    return fresh;
}

void Product::wait(const std::atomic<uint32_t> &value, uint32_t at_least) {
    for (int i = 0; i < k_spin; i++) {
        if (value.load(std::memory_order_acquire) >= at_least) return;
        pause_cpu();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    n_sleeping_.fetch_add(1);
    changed_.wait(lock, [&] { return value.load() >= at_least; });
    n_sleeping_.fetch_sub(1);
}

void Product::announce() {
    // seq_cst pairs with wait(): either the sleeper sees the new value or we see the sleeper.
    if (n_sleeping_.load() == 0) return;
    std::lock_guard<std::mutex> lock(mutex_);
    changed_.notify_all();
}

uint32_t Product::n_drawn(uint32_t from, uint32_t n_ticket, uint32_t n_thread, uint32_t n_chunk) const {
    uint32_t const n = n_ticket / (n_thread * k_draws);
    return n > 1 && from + n <= streamer_.n_ready() * n_chunk ? n : 1;
}

bool Product::begin(uint32_t n_thread, ProductWork &work) {
    try {
        if (!work.begin(n_thread)) return false;
        if (!streamer_.streams()) return true;
        if (n_chunk_done_.size() < streamer_.n_expert())
            n_chunk_done_ = std::vector<std::atomic<uint32_t>>(streamer_.n_expert());
        for (uint32_t i = 0; i < streamer_.n_expert(); i++) n_chunk_done_[i].store(0, std::memory_order_relaxed);
        return true;
    } catch (...) { // the threads wait for each other: none may leave
        streamer_.fail_visit(caught());
        return false;
    }
}

void Product::run(uint32_t thread, uint32_t n_thread, ProductWork &work) {
    // Always the same thread: what beginning touches stays in its core's cache.
    if (thread == 0) {
        armed_ = false;
        bool const ok = begin(n_thread, work);
        begun_.store(ok ? 1 : 2);
        announce();
        if (ok) work.look_ahead();
    } else {
        wait(begun_, 1);
    }
    if (begun_.load(std::memory_order_acquire) == 2) return;

    for (uint32_t i; (i = next_prepare_.fetch_add(1, std::memory_order_relaxed)) < work.n_prepare;) {
        work.prepare(i);
        if (n_prepared_.fetch_add(1) + 1 == work.n_prepare) announce();
    }
    wait(n_prepared_, work.n_prepare);

    uint32_t const n_ticket = streamer_.n_expert() * work.n_chunk;
    bool const streams = streamer_.streams(), traced = streamer_.traced();
    for (;;) {
        uint32_t const n = n_drawn(next_ticket_.load(std::memory_order_relaxed), n_ticket, n_thread, work.n_chunk);
        uint32_t const begin = next_ticket_.fetch_add(n, std::memory_order_relaxed);
        uint32_t const end = std::min(n_ticket, begin + n);
        if (begin >= end) break;
        for (uint32_t t = begin; t < end; t++) {
            int32_t const index = streamer_.wait_ready(t / work.n_chunk);
            if (index < 0) return;
            auto const i = static_cast<uint32_t>(index);
            work.compute(i, t % work.n_chunk, thread);
            if (streams && n_chunk_done_[i].fetch_add(1, std::memory_order_acq_rel) + 1 == work.n_chunk)
                streamer_.release(i);
        }
        if (traced && n_computed_.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == n_ticket)
            streamer_.end_product();
    }
    if (work.has_last && !last_taken_.exchange(true, std::memory_order_acq_rel)) work.last();
}

} // namespace emoe
