#include "io/reader.h"

#include "base/clock.h"
#include "base/error.h"

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace emoe {

std::string read_fully(const ReadRequest &r) {
    uint32_t got = 0;
    while (got < r.need) {
        int64_t const n = r.blocks->read(r.dst + got, r.bytes - got, r.offset + got);
        if (n < 0)
            return "read of " + std::to_string(r.bytes) + " bytes at offset " + std::to_string(r.offset) +
                   " failed: " + os_message(static_cast<int>(-n));
        if (n == 0)
            return "the file ends " + std::to_string(r.need - got) + " bytes early, at offset " +
                   std::to_string(r.offset + got);
        // A direct read must go on at an aligned place: bytes past the last whole block are read again.
        uint32_t const now = got + static_cast<uint32_t>(n);
        got = now >= r.need ? now : std::max(got, now / r.alignment * r.alignment);
        if (got < r.need && now < r.alignment)
            return "the file ends early: " + std::to_string(n) + " bytes at offset " + std::to_string(r.offset);
    }
    return {};
}

Reader::Reader(uint32_t n_lane, uint64_t bytes_per_s, ReadSink &sink) : sink_(sink), bytes_per_s_(bytes_per_s) {
    lanes_.reserve(n_lane);
    for (uint32_t i = 0; i < n_lane; i++) lanes_.emplace_back([this] { run(); });
}

Reader::~Reader() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread &lane : lanes_) lane.join();
}

void Reader::submit(const ReadRequest *requests, size_t n) {
    if (n == 0) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        queue_.insert(queue_.end(), requests, requests + n);
    }
    if (n == 1)
        wake_.notify_one();
    else
        wake_.notify_all();
}

void Reader::run() {
    for (;;) {
        ReadRequest request;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
            if (stop_) return;
            request = queue_.front();
            queue_.pop_front();
        }
        if (bytes_per_s_ != 0) throttle(request.bytes);
        std::string const error = read_fully(request);
        n_read_.fetch_add(1, std::memory_order_relaxed);
        read_bytes_.fetch_add(request.bytes, std::memory_order_relaxed);
        sink_.on_read(request.tag, error);
    }
}

// Each read books its share of the drive's time and sleeps to the end of it.
void Reader::throttle(uint32_t bytes) {
    uint64_t until;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        free_at_ns_ = std::max(free_at_ns_, now_ns()) + uint64_t{bytes} * 1000000000u / bytes_per_s_;
        until = free_at_ns_;
    }
    uint64_t const now = now_ns();
    if (until > now) std::this_thread::sleep_for(std::chrono::nanoseconds(until - now));
}

int64_t FaultyBlocks::read(void *dst, size_t bytes, uint64_t offset) {
    uint64_t left = plan_.countdown.load(std::memory_order_relaxed);
    while (left != UINT64_MAX && !plan_.countdown.compare_exchange_weak(left, left == 0 ? UINT64_MAX : left - 1)) {
    }
    if (left != 0) return inner_.read(dst, bytes, offset);
    switch (plan_.kind.load(std::memory_order_relaxed)) {
    case EMOE_FAULT_FAIL: return -EIO;
    case EMOE_FAULT_TRUNCATE: return 0;
    case EMOE_FAULT_SHORT: return inner_.read(dst, std::max(bytes / 2 / 4096 * 4096, std::min<size_t>(bytes, 4096)), offset);
    case EMOE_FAULT_DELAY: std::this_thread::sleep_for(std::chrono::milliseconds(50)); break;
    default: break;
    }
    return inner_.read(dst, bytes, offset);
}

} // namespace emoe
