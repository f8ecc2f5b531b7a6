#include "engine/speed.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/machine.h"
#include "io/reader.h"
#include "llama/cpu.h"
#include "llama/kernels.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace emoe {

namespace {

// Memory to measure with: at most a quarter of what is left, so that under a tight limit measuring is not what breaks it.
uint64_t room_for(uint64_t wanted) {
    constexpr uint64_t k_least = uint64_t{4} << 20;
    uint64_t const left = machine().available_bytes; // 0: the system does not say
    return left == 0 ? wanted : std::clamp(left / 4, std::min(k_least, wanted), wanted);
}

// Keeps n_lane reads under way: each completion submits the next.
class ReadLoad final : public ReadSink {
public:
    ReadLoad(File &file, uint64_t block, uint32_t n_lane, uint64_t max_bytes, uint64_t max_ns)
        : file_(file), block_(block), left_(max_bytes / block),
          n_place_(std::max<uint64_t>(n_lane, std::min(room_for(k_target_bytes), max_bytes) / block)),
          arena_(block * n_place_), begun_ns_(n_lane) {
        ReaderParams params;
        params.n_lane = n_lane;
        reader_ = make_reader(params, faults_, *this);
        for (size_t i = 0; i < arena_.size(); i += 4096) arena_.data()[i] = 1; // pages are made before, not meanwhile
        std::lock_guard<std::mutex> const lock(mutex_);
        end_ns_ = now_ns() + max_ns;
        begin_ns_ = now_ns();
        for (uint32_t lane = 0; lane < n_lane; lane++) submit(lane);
    }
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return n_under_way_ == 0; });
    }
    void on_read(uint64_t lane, const std::string &error) override {
        std::lock_guard<std::mutex> const lock(mutex_);
        ended(lane, error);
    }
    std::string error_;
    std::vector<uint64_t> latencies_;
    uint64_t begin_ns_ = 0, last_ns_ = 0;

private:
    // Buffers that are filled in turn: as in a cache of experts, what is written to has long left the processor's
    // caches. Into a few buffers over and over a virtual disk reads a fifth faster, which no engine can have.
    static constexpr uint64_t k_target_bytes = uint64_t{64} << 20;

    void ended(uint64_t lane, const std::string &error) {
        n_under_way_--;
        last_ns_ = now_ns();
        if (!error.empty()) {
            error_ = error;
        } else {
            latencies_.push_back(last_ns_ - begun_ns_[lane]);
            submit(lane);
        }
        if (n_under_way_ == 0) done_.notify_all();
    }
    void submit(uint64_t lane) {
        if (left_ == 0 || (now_ns() > end_ns_ && !latencies_.empty())) return; // one read at least
        left_--;
        // A fixed pseudo-random walk over the file (an LCG): the same places in every run.
        walk_ = walk_ * 6364136223846793005u + 1442695040888963407u;
        uint64_t const n_place =
            std::max<uint64_t>(1, (file_.size() - std::min(file_.size(), block_)) / file_.alignment());
        ReadRequest r;
        r.file = &file_;
        r.offset = (walk_ >> 16) % n_place * file_.alignment();
        r.bytes = static_cast<uint32_t>(block_);
        r.need = static_cast<uint32_t>(std::min<uint64_t>(block_, file_.size() - r.offset));
        r.alignment = file_.alignment();
        r.dst = arena_.data() + n_begun_++ % n_place_ * block_;
        r.tag = lane;
        begun_ns_[lane] = now_ns();
        n_under_way_++;
        for (Ended const &e : reader_->submit(&r, 1)) ended(e.tag, e.error);
    }

    File &file_;
    uint64_t const block_;
    uint64_t left_;
    uint64_t end_ns_ = 0;
    uint64_t walk_ = 1;
    uint32_t n_under_way_ = 0;
    uint64_t n_begun_ = 0;
    uint64_t const n_place_;
    Arena arena_;
    std::vector<uint64_t> begun_ns_;
    std::mutex mutex_;
    std::condition_variable done_;
    Faults faults_;
    std::unique_ptr<Reader> reader_;
};

} // namespace

emoe_storage_speed measure_storage(const std::string &path, uint64_t block_bytes, uint32_t n_lane, uint64_t max_bytes,
                                   uint64_t max_ns) {
    emoe_storage_speed speed = {};
    File file(path, FileAccess::direct);
    if (file.size() == 0) fail(EMOE_ERR_FORMAT, "`%s` is empty", path.c_str());
    if (n_lane == 0 || n_lane > 64) fail(EMOE_ERR_ARGUMENT, "%u reads at once: from 1 to 64 make sense", n_lane);
    uint64_t const block = std::clamp<uint64_t>(block_bytes / 4096 * 4096, 4096, uint64_t{64} << 20);
    ReadLoad load(file, block, n_lane, std::max(max_bytes, block), max_ns);
    load.wait();
    if (!load.error_.empty()) fail(EMOE_ERR_IO, "`%s`: %s", path.c_str(), load.error_.c_str());
    std::vector<uint64_t> &l = load.latencies_;
    std::nth_element(l.begin(), l.begin() + static_cast<ptrdiff_t>(l.size() / 2), l.end());
    speed.direct_io = file.direct() ? 1 : 0;
    speed.latency_ns = l[l.size() / 2];
    speed.bytes_per_s =
        static_cast<uint64_t>(static_cast<double>(block * l.size()) * 1e9 /
                              static_cast<double>(std::max<uint64_t>(1, load.last_ns_ - load.begin_ns_)));
    return speed;
}

uint64_t measure_compute(const std::string &type_name, uint32_t n_thread, uint64_t max_ns) {
    ggml_type type = GGML_TYPE_COUNT;
    for (int t = 0; t < GGML_TYPE_COUNT; t++)
        if (ggml_type_name(static_cast<ggml_type>(t)) && type_name == ggml_type_name(static_cast<ggml_type>(t)))
            type = static_cast<ggml_type>(t);
    if (type == GGML_TYPE_COUNT || !can_compute(type))
        fail(EMOE_ERR_ARGUMENT, "no kernel for the type `%s`", type_name.c_str());
    if (n_thread == 0 || n_thread > 1024) fail(EMOE_ERR_ARGUMENT, "%u threads", n_thread);
    constexpr int k = 2048;
    size_t const matrix_bytes = room_for(uint64_t{48} << 20); // larger than most caches: experts come from memory
    auto const *traits = cpu().type_traits(type);
    size_t const row_bytes = ggml_row_size(type, k);
    size_t const n_row = matrix_bytes / row_bytes;
    Arena const weights(matrix_bytes);
    std::fill_n(weights.data(), matrix_bytes, uint8_t{0}); // speed does not depend on the values
    std::vector<uint8_t> const x(ggml_row_size(traits->vec_dot_type, k), 0);
    std::atomic<uint64_t> n_done{0};
    uint64_t const begin = now_ns();
    std::vector<std::thread> threads;
    auto const multiply = [&](uint32_t t) {
        size_t const first = n_row * t / n_thread;
        size_t const last = n_row * (t + 1) / n_thread;
        float sink = 0;
        do {
            for (size_t r = first; r < last; r++)
                traits->vec_dot(k, &sink, 0, weights.data() + r * row_bytes, 0, x.data(), 0, 1);
            n_done += last - first;
        } while (now_ns() - begin < max_ns);
    };
    int refused = 0;
    try {
        for (uint32_t t = 0; t < n_thread; t++) threads.emplace_back(multiply, t);
    } catch (const std::system_error &e) {
        refused = e.code().value();
    } catch (const std::bad_alloc &) {
        refused = ENOMEM;
    }
    for (std::thread &t : threads) t.join();
    if (refused != 0)
        fail(EMOE_ERR_MEMORY, "%u threads were asked for, the system gives %zu: %s", n_thread, threads.size(),
             os_message(refused).c_str());
    return static_cast<uint64_t>(static_cast<double>(n_done * row_bytes) * 1e9 / static_cast<double>(now_ns() - begin));
}

} // namespace emoe
