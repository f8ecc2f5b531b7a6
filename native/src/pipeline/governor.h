// How much to read ahead. Pure: fed with times and counts, answers with a threshold, a depth, and on or off.
//
// A wrong guess costs drive time that somebody else may need, a right one saves a stall. When the drive has idle time
// anyway, guesses of low probability pay; on a drive that is always at work only those that are more likely right
// than wrong do (break-even: docs/experiments/read-ahead.md). And whether reading ahead pays at all is not believed but
// measured: now and then a token is computed without, and where those tokens are faster, reading ahead stops, until a
// later comparison says otherwise. It stops as well where it makes the drive read more and gains next to nothing: those
// bytes are battery, wear, and somebody else's bandwidth (docs/experiments/read-ahead-that-pays.md).
#pragma once

#include <cstdint>

namespace emoe {

enum class PrefetchMode : uint32_t { automatic = 0, off = 1, on = 2 }; // EMOE_PREFETCH_*

class Governor {
public:
    explicit Governor(PrefetchMode mode) : mode_(mode) {}

    // Before a batch: may it read ahead?
    bool reads_ahead(uint32_t n_token) { return n_token == 1 ? begin_token() : mode_ != PrefetchMode::off; }
    // It is computed: what it took, how long of that the drive was at work, and what was read.
    void end_token(uint64_t took_ns, uint64_t drive_ns, uint64_t read_bytes);
    // At a layer: wishes that have not become reads yet, and whether the drive had run out of work.
    void at_layer(uint32_t n_left, bool drive_idle);

    float threshold() const { return threshold_; } // least probability worth a read
    uint32_t depth() const { return depth_; }      // layers to look ahead
    bool paused() const { return paused_; }        // found not to pay
    double with_ns() const { return with_.mean(with_.ns); }
    double without_ns() const { return without_.mean(without_.ns); }
    double with_bytes() const { return with_.mean(with_.bytes); }
    double without_bytes() const { return without_.mean(without_.bytes); }

private:
    // The last tokens of one kind.
    struct Side {
        static constexpr uint32_t k_size = 64;
        float ns[k_size] = {};
        float bytes[k_size] = {};
        uint64_t n = 0;
        void add(double time, double read) {
            ns[n % k_size] = static_cast<float>(time);
            bytes[n++ % k_size] = static_cast<float>(read);
        }
        uint32_t size() const { return n < k_size ? static_cast<uint32_t>(n) : k_size; }
        double mean(const float (&values)[k_size]) const;
        double error() const; // standard error of the mean time
    };
    bool begin_token();
    void compare();

    PrefetchMode const mode_;
    Side with_, without_;
    uint64_t n_token_ = 0;
    bool reads_ahead_ = true;
    bool paused_ = false;
    double busy_ = 0.9; // share of a token's time in which the drive is at work, lately
    float threshold_ = 0.4f;
    uint32_t depth_ = 2;
    double want_depth_ = 2;
};

} // namespace emoe
