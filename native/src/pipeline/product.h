// One matrix product of a visit, computed by all threads of a pool that meet in run().
//
// One thread begins it (routing, look-ups, reads) and, while the others go on, sees to what is read ahead; all
// share the preparation of the activations, then draw (expert, chunk of rows) tickets: experts that are here first, the
// rest as they arrive. A thread whose ticket is not ready sleeps. There is no barrier at the end: the caller's pool has
// one after every node.
#pragma once

#include "pipeline/streamer.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

namespace emoe {

// The arithmetic, supplied by llama/kernels.cpp (or a test).
class ProductWork {
public:
    virtual ~ProductWork() = default;
    // By one thread, before the others go on: calls Streamer::begin_product. False when it could not.
    virtual bool begin(uint32_t n_thread) = 0;
    // By the thread that began it, after it has let the others go on.
    virtual void look_ahead() = 0;
    // Set by begin: items of preparation, and chunks into which each expert's rows are cut.
    uint32_t n_prepare = 0;
    uint32_t n_chunk = 1;
    virtual void prepare(uint32_t item) = 0;
    virtual void compute(uint32_t expert_index, uint32_t chunk, uint32_t thread) = 0;
    // Set by begin: something is left for one thread to do when no ticket is left (results of a GPU to fetch).
    bool has_last = false;
    virtual void last() {}
};

class Product {
public:
    explicit Product(Streamer &streamer) : streamer_(streamer) {}
    // Before each computation, while no thread is in run(). False when it is armed already: the same weights would
    // be used twice in one graph, which the single visit state does not allow for.
    bool arm();
    void disarm() { armed_ = false; }
    void run(uint32_t thread, uint32_t n_thread, ProductWork &work);

private:
    // Tickets drawn at once: several while their experts are here, so that many threads do not queue for the counter.
    uint32_t n_drawn(uint32_t from, uint32_t n_ticket, uint32_t n_thread, uint32_t n_chunk) const;
    // Waits until value reaches at_least: briefly awake, then asleep.
    void wait(const std::atomic<uint32_t> &value, uint32_t at_least);
    void announce();
    bool begin(uint32_t n_thread, ProductWork &work); // false when the visit failed

    Streamer &streamer_;
    bool armed_ = false;
    // A cache line each: what one thread waits for is not moved by what the others count.
    alignas(64) std::atomic<uint32_t> begun_{0}; // 1: go on, 2: the visit failed
    alignas(64) std::atomic<uint32_t> next_prepare_{0};
    alignas(64) std::atomic<uint32_t> n_prepared_{0};
    alignas(64) std::atomic<uint32_t> next_ticket_{0};
    std::atomic<bool> last_taken_{false};
    alignas(64) std::atomic<uint32_t> n_computed_{0}; // tickets, while somebody asks when a product ends
    std::vector<std::atomic<uint32_t>> n_chunk_done_; // by expert index, of experts that pass through
    alignas(64) std::mutex mutex_;                    // guards the sleep in wait()
    std::condition_variable changed_;
    std::atomic<uint32_t> n_sleeping_{0};
};

} // namespace emoe
