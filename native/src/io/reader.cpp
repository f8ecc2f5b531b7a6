#include "io/reader.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace emoe {

bool ReadProgress::advance(int64_t result, std::string *error) {
    if (result == -EINTR || result == -EAGAIN) return false; // not the drive's word: asked again
    try {
        return take(result, error);
    } catch (...) { // there is no memory for the reason, and nobody here to tell
        *error = caught().message;
        return true;
    }
}

bool ReadProgress::take(int64_t result, std::string *error) {
    ReadRequest const &r = request;
    if (result < 0) {
        *error = "read of " + std::to_string(r.bytes) + " bytes at offset " + std::to_string(r.offset) + " of `" +
                 r.file->path() + "` failed: " + os_message(static_cast<int>(-result));
        return true;
    }
    uint32_t const now = got + static_cast<uint32_t>(result);
    if (now >= r.need) return true;
    // A direct read must go on at an aligned place: bytes past the last whole block are read again.
    uint32_t const whole = now / r.alignment * r.alignment;
    if (result == 0 || whole <= got) {
        *error = "`" + r.file->path() + "` ends " + std::to_string(r.need - now) + " bytes early, at offset " +
                 std::to_string(r.offset + now);
        return true;
    }
    got = whole;
    return false;
}

std::string read_now(const ReadRequest &request) {
    ReadProgress p;
    p.request = request;
    std::string error;
    int64_t n;
    do n = request.file->read(request.dst + p.got, request.bytes - p.got, request.offset + p.got);
    while (!p.advance(n, &error));
    return error;
}

namespace {

// Whether the caller is the one that a countdown meets. UINT64_MAX stands still; behind 0 comes `after`.
bool finds_zero(std::atomic<uint64_t> &countdown, uint64_t after) {
    uint64_t left = countdown.load(std::memory_order_relaxed);
    while (left != UINT64_MAX && !countdown.compare_exchange_weak(left, left == 0 ? after : left - 1)) {
    }
    return left == 0;
}

} // namespace

int64_t Faults::distort(int64_t result, uint32_t bytes) {
    if (!finds_zero(countdown, UINT64_MAX)) return result;
    switch (kind.load(std::memory_order_relaxed)) {
    case EMOE_FAULT_FAIL: return -EIO;
    case EMOE_FAULT_INTERRUPT: return -EINTR;
    case EMOE_FAULT_TRUNCATE: return 0;
    case EMOE_FAULT_SHORT:
        return std::min<int64_t>(result, std::max<uint32_t>(bytes / 2 / 4096 * 4096, std::min<uint32_t>(bytes, 4096)));
    case EMOE_FAULT_DELAY: std::this_thread::sleep_for(std::chrono::milliseconds(50)); return result;
    default: return result;
    }
}

int Faults::refuse_enter() {
    uint64_t const after = enter_stays.load(std::memory_order_relaxed) ? 0 : UINT64_MAX;
    return finds_zero(enter_countdown, after) ? enter_error.load(std::memory_order_relaxed) : 0;
}

std::unique_ptr<Reader> make_reader(const ReaderParams &params, Faults &faults, ReadSink &sink) {
    if (params.kind == ReaderKind::threads || params.bytes_per_s != 0) return make_thread_reader(params, faults, sink);
    std::unique_ptr<Reader> reader = make_uring_reader(params, faults, sink);
    if (!reader && params.kind == ReaderKind::uring) fail(EMOE_ERR_UNSUPPORTED, "this system does not allow io_uring");
    return reader ? std::move(reader) : make_thread_reader(params, faults, sink);
}

namespace {

constexpr uint64_t k_answer_ns = 80000; // of a throttled drive: what an NVMe drive takes

class ThreadReader final : public Reader {
public:
    ThreadReader(const ReaderParams &params, Faults &faults, ReadSink &sink)
        : sink_(sink), faults_(faults), bytes_per_s_(params.bytes_per_s) {
        lanes_.reserve(params.n_lane);
        try { // with fewer where the system gives no more
            for (uint32_t i = 0; i < params.n_lane; i++) lanes_.emplace_back([this] { run(); });
        } catch (const std::system_error &e) {
            if (lanes_.empty())
                fail(EMOE_ERR_MEMORY, "no thread to read with can be started: %s",
                     os_message(e.code().value()).c_str());
        } catch (const std::bad_alloc &) {
            if (lanes_.empty()) throw;
        }
    }
    ~ThreadReader() override {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread &lane : lanes_) lane.join();
    }
    std::vector<Ended> submit(const ReadRequest *requests, size_t n) override {
        if (n == 0) return {};
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            queue_.insert(queue_.end(), requests, requests + n);
        }
        if (n == 1)
            wake_.notify_one();
        else
            wake_.notify_all();
        return {};
    }
    ReaderKind kind() const override { return ReaderKind::threads; }

private:
    void run();
    void throttle(uint32_t bytes);

    ReadSink &sink_;
    Faults &faults_;
    uint64_t const bytes_per_s_;
    std::mutex mutex_; // guards queue_, stop_, free_at_ns_
    std::condition_variable wake_;
    std::deque<ReadRequest> queue_;
    bool stop_ = false;
    uint64_t free_at_ns_ = 0; // when the throttled drive is idle again
    std::vector<std::thread> lanes_;
};

void ThreadReader::run() {
    prefer_short_turns();
    if (bytes_per_s_ != 0) sleep_exactly();
    for (;;) {
        ReadProgress p;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
            if (stop_) return;
            p.request = queue_.front();
            queue_.pop_front();
        }
        ReadRequest const &r = p.request;
        if (bytes_per_s_ != 0) throttle(r.bytes);
        std::string error;
        int64_t n;
        do {
            uint32_t const rest = r.bytes - p.got;
            n = faults_.distort(r.file->read(r.dst + p.got, rest, r.offset + p.got), rest);
        } while (!p.advance(n, &error));
        count(r);
        sink_.on_read(r.tag, error);
    }
}

// Each read books its share of the drive's time and sleeps to the end of it, and as long as a drive takes to answer.
void ThreadReader::throttle(uint32_t bytes) {
    uint64_t until;
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        free_at_ns_ = std::max(free_at_ns_, now_ns()) + uint64_t{bytes} * 1000000000u / bytes_per_s_;
        until = free_at_ns_ + k_answer_ns;
    }
    uint64_t const now = now_ns();
    if (until > now) std::this_thread::sleep_for(std::chrono::nanoseconds(until - now));
}

} // namespace

std::unique_ptr<Reader> make_thread_reader(const ReaderParams &params, Faults &faults, ReadSink &sink) {
    return std::make_unique<ThreadReader>(params, faults, sink);
}

} // namespace emoe
