// The io_uring engine, on the three system calls and the two shared rings (io_uring(7)); no liburing.
#include "io/reader.h"

// Not on Android: an app's seccomp filter ends the process at a system call that it does not list.
#if defined(__linux__) && !defined(__ANDROID__) && __has_include(<linux/io_uring.h>)

#include "base/error.h"
#include "base/thread.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <linux/io_uring.h>
#include <mutex>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace emoe {

namespace {

int ring_setup(uint32_t entries, io_uring_params *p) {
    return static_cast<int>(syscall(__NR_io_uring_setup, entries, p));
}
int ring_enter(int fd, uint32_t submit, uint32_t min_complete, uint32_t flags) {
    return static_cast<int>(syscall(__NR_io_uring_enter, fd, submit, min_complete, flags, nullptr, 0));
}

// The kernel's side of the rings is another thread in all but name: loads acquire, stores release.
uint32_t load_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
void store_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }

constexpr uint64_t k_stop = UINT64_MAX; // user_data of the no-op that wakes the sleeping thread to end

class UringReader final : public Reader {
public:
    UringReader(const ReaderParams &params, Faults &faults, ReadSink &sink)
        : sink_(sink), faults_(faults), n_lane_(params.n_lane), slots_(params.n_lane) {
        for (uint32_t i = 0; i < n_lane_; i++) free_.push_back(n_lane_ - 1 - i);
    }
    ~UringReader() override;
    bool open(); // false when the kernel has no io_uring for us

    void submit(const ReadRequest *requests, size_t n) override;
    void poll() override {
        if (load_acquire(cq_head_) != load_acquire(cq_tail_)) reap();
    }
    ReaderKind kind() const override { return ReaderKind::uring; }

private:
    struct Ended {
        uint64_t tag;
        std::string error;
    };
    void sleep_for_completions();
    void reap();
    void fill(); // with mutex_: starts reads while there are requests and lanes
    void push(uint32_t slot);

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
    sleeper_ = std::thread([this] { sleep_for_completions(); });
    return true;
}

UringReader::~UringReader() {
    if (sleeper_.joinable()) {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            stop_ = true;
            queue_.clear();
            uint32_t const tail = *sq_tail_;
            io_uring_sqe &sqe = sqes_[tail & sq_mask_];
            memset(&sqe, 0, sizeof sqe);
            sqe.opcode = IORING_OP_NOP;
            sqe.user_data = k_stop;
            sq_array_[tail & sq_mask_] = tail & sq_mask_;
            store_release(sq_tail_, tail + 1);
            n_pushed_++;
            fill(); // the queue is empty: this only tells the kernel, until it has taken it
        }
        sleeper_.join();
    }
    if (sqes_) munmap(sqes_, sqes_bytes_);
    if (rings_) munmap(rings_, rings_bytes_);
    if (fd_ >= 0) close(fd_);
}

void UringReader::push(uint32_t slot) {
    ReadProgress const &p = slots_[slot];
    uint32_t const tail = *sq_tail_;
    io_uring_sqe &sqe = sqes_[tail & sq_mask_];
    memset(&sqe, 0, sizeof sqe);
    sqe.opcode = IORING_OP_READ;
    sqe.fd = p.request.file->fd();
    sqe.addr = reinterpret_cast<uintptr_t>(p.request.dst + p.got);
    sqe.len = p.request.bytes - p.got;
    sqe.off = p.request.offset + p.got;
    sqe.user_data = slot;
    sq_array_[tail & sq_mask_] = tail & sq_mask_;
    store_release(sq_tail_, tail + 1);
    n_pushed_++;
}

void UringReader::fill() {
    while (!queue_.empty() && !free_.empty()) {
        uint32_t const slot = free_.back();
        free_.pop_back();
        slots_[slot] = ReadProgress{queue_.front(), 0};
        queue_.pop_front();
        push(slot);
    }
    while (n_pushed_ > 0) {
        int const n = ring_enter(fd_, n_pushed_, 0, 0);
        if (n > 0) n_pushed_ -= static_cast<uint32_t>(n);
        // EAGAIN, EBUSY: the kernel is short of something for a moment; the entries stay in the ring.
        if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) break;
        if (n < 0) std::this_thread::yield();
    }
}

void UringReader::submit(const ReadRequest *requests, size_t n) {
    if (n == 0) return;
    std::lock_guard<std::mutex> const lock(mutex_);
    queue_.insert(queue_.end(), requests, requests + n);
    fill();
}

void UringReader::reap() {
    std::vector<Ended> ended;
    {
        std::lock_guard<std::mutex> const lock(mutex_);
        uint32_t head = *cq_head_;
        while (head != load_acquire(cq_tail_)) {
            io_uring_cqe const cqe = cqes_[head & cq_mask_];
            store_release(cq_head_, ++head);
            if (cqe.user_data == k_stop) continue;
            auto const slot = static_cast<uint32_t>(cqe.user_data);
            ReadProgress &p = slots_[slot];
            // EAGAIN and EINTR are not the drive's word: asked again.
            if (cqe.res == -EAGAIN || cqe.res == -EINTR) {
                push(slot);
                continue;
            }
            std::string error;
            if (!p.advance(faults_.distort(cqe.res, p.request.bytes - p.got), &error)) {
                push(slot);
                continue;
            }
            count(p.request);
            ended.push_back(Ended{p.request.tag, std::move(error)});
            free_.push_back(slot);
        }
        fill();
    }
    for (Ended const &e : ended) sink_.on_read(e.tag, e.error);
}

void UringReader::sleep_for_completions() {
    prefer_short_turns();
    for (;;) {
        int const n = ring_enter(fd_, 0, 1, IORING_ENTER_GETEVENTS);
        if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) return;
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
