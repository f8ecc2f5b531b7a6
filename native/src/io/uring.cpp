// The io_uring engine, on the three system calls and the two shared rings (io_uring(7)); no liburing.
#include "io/reader.h"

// Not on Android: an app's seccomp filter ends the process at a system call that it does not list.
#if defined(__linux__) && !defined(__ANDROID__) && __has_include(<linux/io_uring.h>)

#include "base/clock.h"
#include "base/error.h"
#include "base/thread.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <linux/io_uring.h>
#include <mutex>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

namespace emoe {

namespace {

int ring_setup(uint32_t entries, io_uring_params *p) {
    return static_cast<int>(syscall(__NR_io_uring_setup, entries, p));
}
int ring_enter(int fd, uint32_t submit, uint32_t min_complete, uint32_t flags, const void *arg, size_t arg_bytes) {
    return static_cast<int>(syscall(__NR_io_uring_enter, fd, submit, min_complete, flags, arg, arg_bytes));
}

// The kernel's side of the rings is another thread in all but name: loads acquire, stores release.
uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
void store_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

constexpr uint64_t k_stop = UINT64_MAX; // user_data of the no-op that wakes the sleeping thread to end

// The kernel is short of something for a moment: asked again, for so long.
constexpr uint64_t k_patience_ns = uint64_t{2} << 30;
bool passes(int e) { return e == EINTR || e == EAGAIN || e == EBUSY; }
// Between two looks for completions where the kernel refuses to wait for them.
constexpr auto k_look = std::chrono::milliseconds(1);

class UringReader final : public Reader {
public:
    UringReader(const ReaderParams &params, Faults &faults, ReadSink &sink)
        : sink_(sink), faults_(faults), n_lane_(params.n_lane), slots_(params.n_lane) {
        for (uint32_t i = 0; i < n_lane_; i++) free_.push_back(n_lane_ - 1 - i);
    }
    ~UringReader() override;
    bool open(); // false when the kernel has no io_uring for us

    std::vector<Ended> submit(const ReadRequest *requests, size_t n) override;
    void poll() override {
        if (load_acquire(cq_head_) != load_acquire(cq_tail_)) reap();
    }
    ReaderKind kind() const override { return ReaderKind::uring; }

private:
    int enter(uint32_t submit, uint32_t min_complete, uint32_t flags); // -1 and errno
    bool answers();
    void sleep_for_completions();
    void reap();
    // The next four with mutex_.
    void fill(std::vector<Ended> *refused);                 // starts reads while there are requests and lanes
    io_uring_sqe &push(uint8_t opcode, uint64_t user_data); // with nothing else in it
    void push_read(uint32_t slot);
    int tell(); // the kernel what was pushed; 0 or errno, and then some is not taken
    void take_back(int error, std::vector<Ended> *refused);

    ReadSink &sink_;
    Faults &faults_;
    uint32_t const n_lane_;
    int fd_ = -1;
    void *rings_ = nullptr;
    size_t rings_bytes_ = 0;
    io_uring_sqe *sqes_ = nullptr;
    size_t sqes_bytes_ = 0;
    uint32_t *sq_tail_ = nullptr, *sq_array_ = nullptr;
    uint32_t *cq_head_ = nullptr, *cq_tail_ = nullptr;
    uint32_t sq_mask_ = 0, cq_mask_ = 0;
    io_uring_cqe *cqes_ = nullptr;
    bool can_time_ = false; // waiting may end after some time (Linux 5.11)

    std::mutex mutex_; // guards the rings and everything below
    std::deque<ReadRequest> queue_;
    std::vector<ReadProgress> slots_; // reads under way
    std::vector<uint32_t> free_;
    uint32_t n_pushed_ = 0; // entries not yet told to the kernel
    bool stop_ = false;
    std::thread sleeper_;
};

bool UringReader::open() {
    io_uring_params p = {};
    fd_ = ring_setup(n_lane_ * 2, &p);
    if (fd_ < 0) return false;
    // The last came with Linux 5.6, as did IORING_OP_READ.
    constexpr uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
    if ((p.features & needed) != needed) return false;
    rings_bytes_ = std::max<size_t>(p.sq_off.array + p.sq_entries * sizeof(uint32_t),
                                    p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe));
    rings_ = mmap(nullptr, rings_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQ_RING);
    if (rings_ == MAP_FAILED) {
        rings_ = nullptr;
        return false;
    }
    sqes_bytes_ = p.sq_entries * sizeof(io_uring_sqe);
    void *sqes = mmap(nullptr, sqes_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQES);
    if (sqes == MAP_FAILED) return false;
    sqes_ = static_cast<io_uring_sqe *>(sqes);
    auto *base = static_cast<uint8_t *>(rings_);
    auto const at = [base](uint32_t offset) { return reinterpret_cast<uint32_t *>(base + offset); };
    sq_tail_ = at(p.sq_off.tail);
    sq_array_ = at(p.sq_off.array);
    sq_mask_ = *at(p.sq_off.ring_mask);
    cq_head_ = at(p.cq_off.head);
    cq_tail_ = at(p.cq_off.tail);
    cq_mask_ = *at(p.cq_off.ring_mask);
    cqes_ = reinterpret_cast<io_uring_cqe *>(base + p.cq_off.cqes);
#ifdef IORING_ENTER_EXT_ARG
    can_time_ = (p.features & IORING_FEAT_EXT_ARG) != 0;
#endif
    if (!answers()) return false;
    try {
        sleeper_ = std::thread([this] { sleep_for_completions(); });
    } catch (const std::system_error &) {
        return false;
    }
    return true;
}

int UringReader::enter(uint32_t submit, uint32_t min_complete, uint32_t flags) {
    if (int const e = faults_.refuse_enter()) {
        errno = e;
        return -1;
    }
#ifdef IORING_ENTER_EXT_ARG
    if (min_complete == 0 || !can_time_) return ring_enter(fd_, submit, min_complete, flags, nullptr, 0);
    // A second: after it the sleeping thread sees that it shall end, also when the no-op was refused.
    struct {
        int64_t s = 1, ns = 0;
    } const limit = {};
    io_uring_getevents_arg arg = {};
    arg.ts = reinterpret_cast<uintptr_t>(&limit);
    int const n = ring_enter(fd_, submit, min_complete, flags | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
    return n < 0 && errno == ETIME ? 0 : n;
#else
    return ring_enter(fd_, submit, min_complete, flags, nullptr, 0);
#endif
}

// A ring may be made where nothing may be asked of it (a filter of system calls that knows only one of them).
bool UringReader::answers() {
    push(IORING_OP_NOP, k_stop);
    if (tell() != 0) return false;
    bool const waited = enter(0, 1, IORING_ENTER_GETEVENTS) >= 0;
    store_release(cq_head_, load_acquire(cq_tail_));
    return waited;
}

UringReader::~UringReader() {
    if (sleeper_.joinable()) {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            stop_ = true;
            queue_.clear();
            push(IORING_OP_NOP, k_stop);
        }
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex_);
            if (tell() == 0 || can_time_) break; // else the thread would sleep on
            lock.unlock();
            std::this_thread::sleep_for(k_look);
        }
        sleeper_.join();
    }
    if (sqes_) munmap(sqes_, sqes_bytes_);
    if (rings_) munmap(rings_, rings_bytes_);
    if (fd_ >= 0) close(fd_);
}

// The entry is the kernel's when it is told: what the caller still writes into it is seen.
io_uring_sqe &UringReader::push(uint8_t opcode, uint64_t user_data) {
    uint32_t const tail = *sq_tail_;
    io_uring_sqe &sqe = sqes_[tail & sq_mask_];
    memset(&sqe, 0, sizeof sqe);
    sqe.opcode = opcode;
    sqe.user_data = user_data;
    sq_array_[tail & sq_mask_] = tail & sq_mask_;
    store_release(sq_tail_, tail + 1);
    n_pushed_++;
    return sqe;
}

void UringReader::push_read(uint32_t slot) {
    ReadProgress const &p = slots_[slot];
    io_uring_sqe &sqe = push(IORING_OP_READ, slot);
    sqe.fd = p.request.file->fd();
    sqe.addr = reinterpret_cast<uintptr_t>(p.request.dst + p.got);
    sqe.len = p.request.bytes - p.got;
    sqe.off = p.request.offset + p.got;
}

int UringReader::tell() {
    uint64_t begin_ns = 0;
    while (n_pushed_ > 0) {
        int const n = enter(n_pushed_, 0, 0);
        int const error = n < 0 ? errno : EAGAIN; // none taken without a reason is the same
        if (n > 0) {
            n_pushed_ -= static_cast<uint32_t>(n);
            continue;
        }
        if (!passes(error)) return error;
        uint64_t const now = now_ns();
        if (begin_ns == 0) begin_ns = now;
        if (now - begin_ns > k_patience_ns) return error;
        std::this_thread::yield();
    }
    return 0;
}

// What the kernel has not taken is still ours: without a thread of its own it looks at the ring only when told.
void UringReader::take_back(int error, std::vector<Ended> *refused) {
    std::string const why = "the system refuses to read (io_uring): " + os_message(error);
    uint32_t const tail = *sq_tail_;
    for (uint32_t i = tail - n_pushed_; i != tail; i++) {
        if (sqes_[i & sq_mask_].user_data == k_stop)
            continue; // who shall be woken by it is awake, or wakes in a second
        auto const slot = static_cast<uint32_t>(sqes_[i & sq_mask_].user_data);
        refused->push_back(Ended{slots_[slot].request.tag, why});
        free_.push_back(slot);
    }
    store_release(sq_tail_, tail - n_pushed_);
    n_pushed_ = 0;
    for (ReadRequest const &r : queue_) refused->push_back(Ended{r.tag, why});
    queue_.clear();
}

void UringReader::fill(std::vector<Ended> *refused) {
    while (!queue_.empty() && !free_.empty()) {
        uint32_t const slot = free_.back();
        free_.pop_back();
        slots_[slot] = ReadProgress{queue_.front(), 0};
        queue_.pop_front();
        push_read(slot);
    }
    if (int const error = tell()) take_back(error, refused);
}

std::vector<Ended> UringReader::submit(const ReadRequest *requests, size_t n) {
    std::vector<Ended> refused;
    if (n == 0) return refused;
    std::lock_guard<std::mutex> const lock(mutex_);
    queue_.insert(queue_.end(), requests, requests + n);
    fill(&refused);
    return refused;
}

void UringReader::reap() {
    std::vector<Ended> refused;  // empty on nearly every day
    std::array<Ended, 16> ended; // and no memory is asked for
    size_t n_ended = 0;
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        uint32_t head = *cq_head_;
        while (n_ended < ended.size() && head != load_acquire(cq_tail_)) {
            io_uring_cqe const cqe = cqes_[head & cq_mask_];
            store_release(cq_head_, ++head);
            if (cqe.user_data == k_stop) continue;
            auto const slot = static_cast<uint32_t>(cqe.user_data);
            ReadProgress &p = slots_[slot];
            std::string error;
            if (!p.advance(faults_.distort(cqe.res, p.request.bytes - p.got), &error)) {
                push_read(slot);
                continue;
            }
            count(p.request);
            ended[n_ended++] = Ended{p.request.tag, std::move(error)};
            free_.push_back(slot);
        }
        fill(&refused);
    }
    for (size_t i = 0; i < n_ended; i++) sink_.on_read(ended[i].tag, ended[i].error);
    for (Ended const &e : refused) sink_.on_read(e.tag, e.error);
    if (n_ended == ended.size()) reap(); // there may be more
}

void UringReader::sleep_for_completions() {
    prefer_short_turns();
    for (;;) {
        // Where waiting is refused, what was begun ends all the same: it is looked for.
        if (enter(0, 1, IORING_ENTER_GETEVENTS) < 0 && errno != EINTR) std::this_thread::sleep_for(k_look);
        reap();
        std::lock_guard<std::mutex> const lock(mutex_);
        if (stop_ && free_.size() == n_lane_) return;
    }
}

} // namespace

std::unique_ptr<Reader> make_uring_reader(const ReaderParams &params, Faults &faults, ReadSink &sink) {
    auto reader = std::make_unique<UringReader>(params, faults, sink);
    if (!reader->open()) return nullptr;
    return reader;
}

} // namespace emoe

#else

namespace emoe {
std::unique_ptr<Reader> make_uring_reader(const ReaderParams &, Faults &, ReadSink &) { return nullptr; }
} // namespace emoe

#endif
