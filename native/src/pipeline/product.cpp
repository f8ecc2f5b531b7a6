#include "pipeline/product.h"

namespace emoe {

namespace {
constexpr int k_spin = 2000; // planning and preparing take microseconds
}

bool Product::arm() {
    bool const fresh = !armed_;
    armed_ = true;
    claimed_.store(0, std::memory_order_relaxed);
    planned_.store(0, std::memory_order_relaxed);
    next_prepare_.store(0, std::memory_order_relaxed);
    n_prepared_.store(0, std::memory_order_relaxed);
    next_ticket_.store(0, std::memory_order_relaxed);
    n_computed_.store(0, std::memory_order_relaxed);
    return fresh;
}

void Product::wait(const std::atomic<uint32_t> &value, uint32_t at_least) {
    for (int i = 0; i < k_spin; i++)
        if (value.load(std::memory_order_acquire) >= at_least) return;
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

void Product::run(uint32_t thread, uint32_t n_thread, ProductWork &work) {
    if (claimed_.exchange(1, std::memory_order_acq_rel) == 0) {
        armed_ = false;
        bool const ok = work.plan(n_thread);
        if (ok && n_chunk_done_.size() < streamer_.n_expert())
            n_chunk_done_ = std::vector<std::atomic<uint32_t>>(streamer_.n_expert());
        for (uint32_t i = 0; ok && i < streamer_.n_expert(); i++) n_chunk_done_[i].store(0, std::memory_order_relaxed);
        planned_.store(ok ? 1 : 2);
        announce();
    } else {
        wait(planned_, 1);
    }
    if (planned_.load(std::memory_order_acquire) == 2) return;

    for (uint32_t i; (i = next_prepare_.fetch_add(1, std::memory_order_relaxed)) < work.n_prepare;) {
        work.prepare(i);
        if (n_prepared_.fetch_add(1) + 1 == work.n_prepare) announce();
    }
    wait(n_prepared_, work.n_prepare);

    uint32_t const n_ticket = streamer_.n_expert() * work.n_chunk;
    for (uint32_t t; (t = next_ticket_.fetch_add(1, std::memory_order_relaxed)) < n_ticket;) {
        int32_t const index = streamer_.wait_ready(t / work.n_chunk);
        if (index < 0) return;
        auto const i = static_cast<uint32_t>(index);
        work.compute(i, t % work.n_chunk, thread);
        if (n_chunk_done_[i].fetch_add(1, std::memory_order_acq_rel) + 1 == work.n_chunk) streamer_.release(i);
        if (n_computed_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_ticket) streamer_.end_product();
    }
}

} // namespace emoe
