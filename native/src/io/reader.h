// Asynchronous reads: requests go in, completions come back on a reader thread, first in first out.
//
// One design, chosen because it sleeps: n lanes (threads) that block in pread. They cost no CPU while the
// drive works, which matters when the compute threads own every core.
#pragma once

#include "io/file.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace emoe {

struct ReadRequest {
    Blocks *blocks = nullptr;
    uint64_t offset = 0;    // multiple of the file's alignment
    uint32_t bytes = 0;     // multiple of the file's alignment
    uint32_t need = 0;      // bytes that must arrive; the rest is alignment and may lie past the end of the file
    uint32_t alignment = 0; // of the file
    uint8_t *dst = nullptr; // aligned likewise
    uint64_t tag = 0;       // handed back
};

// Called on a reader thread, once for each request. error is empty when all needed bytes arrived.
class ReadSink {
public:
    virtual ~ReadSink() = default;
    virtual void on_read(uint64_t tag, const std::string &error) = 0;
};

class Reader {
public:
    // bytes_per_s: throttle over all lanes, 0 for none.
    Reader(uint32_t n_lane, uint64_t bytes_per_s, ReadSink &sink);
    // Finishes the reads under way, drops those not begun.
    ~Reader();
    Reader(const Reader &) = delete;
    Reader &operator=(const Reader &) = delete;

    void submit(const ReadRequest *requests, size_t n);

    uint64_t n_read() const { return n_read_.load(std::memory_order_relaxed); }
    uint64_t read_bytes() const { return read_bytes_.load(std::memory_order_relaxed); }

private:
    void run();
    void throttle(uint32_t bytes);

    ReadSink &sink_;
    uint64_t const bytes_per_s_;
    std::atomic<uint64_t> n_read_{0};
    std::atomic<uint64_t> read_bytes_{0};
    std::mutex mutex_; // guards queue_, stop_, free_at_ns_
    std::condition_variable wake_;
    std::deque<ReadRequest> queue_;
    bool stop_ = false;
    uint64_t free_at_ns_ = 0; // when the throttled drive is idle again
    std::vector<std::thread> lanes_;
};

// Reads everything that a request needs, asking again after short reads. Empty, or what went wrong.
std::string read_fully(const ReadRequest &request);

// When and how a read goes wrong. Shared by the FaultyBlocks of all files of an engine.
struct FaultPlan {
    std::atomic<uint32_t> kind{0};        // EMOE_FAULT_*
    std::atomic<uint64_t> countdown{UINT64_MAX};
};

// The fault-injecting twin of File: passes reads on, and lets the n-th one fail as its plan says.
class FaultyBlocks final : public Blocks {
public:
    FaultyBlocks(Blocks &inner, FaultPlan &plan) : inner_(inner), plan_(plan) {}
    int64_t read(void *dst, size_t bytes, uint64_t offset) override;

private:
    Blocks &inner_;
    FaultPlan &plan_;
};

} // namespace emoe
