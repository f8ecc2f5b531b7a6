// Asynchronous reads: requests go in, completions come back, first in first out, a few under way at once.
//
// Two engines behind one interface. Threads (lanes) block in pread: everywhere. io_uring (Linux) starts a read in the
// caller's own thread and needs no other thread to be scheduled before the drive works, which is what counts when
// the compute threads own every core; one thread sleeps for completions, and compute threads reap in passing.
#pragma once

#include "io/file.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace emoe {

struct ReadRequest {
    const File *file = nullptr;
    uint64_t offset = 0;    // multiple of the alignment
    uint32_t bytes = 0;     // multiple of the alignment
    uint32_t need = 0;      // bytes that must arrive; the rest is alignment and may lie past the end of the file
    uint32_t alignment = 0; // of the file
    uint8_t *dst = nullptr; // aligned likewise
    uint64_t tag = 0;       // handed back
};

// A request that is over: its tag, and why it failed.
struct Ended {
    uint64_t tag;
    std::string error; // empty: all needed bytes arrived
};

// Called once for each request that submit() did not give back, on a reader thread or inside poll(); never with a lock
// of the reader held. error is empty when all needed bytes arrived.
class ReadSink {
public:
    virtual ~ReadSink() = default;
    virtual void on_read(uint64_t tag, const std::string &error) = 0;
};

// When and how a read goes wrong: the reader's fault-injecting twin is the reader with some.
struct Faults {
    std::atomic<uint32_t> kind{0};               // EMOE_FAULT_*
    std::atomic<uint64_t> countdown{UINT64_MAX}; // the read that finds 0 goes wrong
    // What a read of `bytes` that returned `result` shall be taken to have returned.
    int64_t distort(int64_t result, uint32_t bytes);

    // Of io_uring_enter: the call that finds 0 fails with this errno; with enter_stays, so does each after it.
    std::atomic<int> enter_error{0};
    std::atomic<uint64_t> enter_countdown{UINT64_MAX};
    std::atomic<bool> enter_stays{false};
    // The errno that a call about to be made shall fail with; 0: it is made.
    int refuse_enter();
};

// A request and how much of it has arrived.
struct ReadProgress {
    ReadRequest request;
    uint32_t got = 0;
    // Takes the result of a read of the rest (bytes or -errno). True when it is over; *error says why if badly.
    bool advance(int64_t result, std::string *error);

private:
    bool take(int64_t result, std::string *error);
};

// Reads it here and now. Empty when all needed bytes have arrived, else why not.
std::string read_now(const ReadRequest &request);

enum class ReaderKind : uint32_t { automatic = 0, threads = 1, uring = 2 };

struct ReaderParams {
    ReaderKind kind = ReaderKind::automatic; // automatic: io_uring where it works and no throttle is set
    uint32_t n_lane = 4;                     // reads under way at once
    // A drive that gives no more over all lanes, and answers after 80 us; 0: the real one (threads only).
    uint64_t bytes_per_s = 0;
};

class Reader {
public:
    // Finishes the reads under way, drops those not begun.
    virtual ~Reader() = default;
    // Gives back what the system refused to begin, requests of earlier calls among them; nothing will be heard of those.
    [[nodiscard]] virtual std::vector<Ended> submit(const ReadRequest *requests, size_t n) = 0;
    // Looks for completions without waiting. Cheap when there are none.
    virtual void poll() {}
    virtual ReaderKind kind() const = 0;

    uint64_t n_read() const { return n_read_.load(std::memory_order_relaxed); }
    uint64_t read_bytes() const { return read_bytes_.load(std::memory_order_relaxed); }

protected:
    void count(const ReadRequest &request) {
        n_read_.fetch_add(1, std::memory_order_relaxed);
        read_bytes_.fetch_add(request.bytes, std::memory_order_relaxed);
    }

private:
    std::atomic<uint64_t> n_read_{0};
    std::atomic<uint64_t> read_bytes_{0};
};

// Throws EMOE_ERR_UNSUPPORTED when io_uring is asked for by name and the kernel does not allow it.
std::unique_ptr<Reader> make_reader(const ReaderParams &params, Faults &faults, ReadSink &sink);

// The engines. make_uring_reader returns nullptr where the kernel has no io_uring or forbids it.
std::unique_ptr<Reader> make_thread_reader(const ReaderParams &params, Faults &faults, ReadSink &sink);
std::unique_ptr<Reader> make_uring_reader(const ReaderParams &params, Faults &faults, ReadSink &sink);

} // namespace emoe
