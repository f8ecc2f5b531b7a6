// Brings the experts of one layer to the compute threads: looks up, evicts, reads, and says which are here.
//
// A *visit* is one passage of a batch through one mixture layer: two or three matrix products (up, gate, down) that
// use the same experts. The first product of a visit looks every routed expert up, takes slots for the missing ones
// and issues all their reads at once, in the order in which the products need them; the experts stay pinned until
// the next visit begins. Experts become *ready* for a product in the order: those here already, then arrivals.
//
// When a batch routes to more experts than the cache has slots (a long prefill on a small budget), the visit
// *streams*: hits stay, the others pass one matrix at a time through the remaining slots, each byte still read once.
#pragma once

#include "cache/cache.h"
#include "io/reader.h"
#include "pipeline/layout.h"

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emoe {

// The routing of a batch: expert of token t in rank k is ids[t * token_stride + k * rank_stride] (strides in bytes).
struct Routing {
    const uint8_t *ids = nullptr; // int32_t values
    uint32_t n_token = 0;
    uint32_t n_rank = 0; // top-k
    uint64_t token_stride = 0;
    uint64_t rank_stride = 0;
    int32_t at(uint32_t token, uint32_t rank) const {
        return *reinterpret_cast<const int32_t *>(ids + token * token_stride + rank * rank_stride);
    }
};

struct Row { // one (token, rank) pair
    uint32_t token;
    uint32_t rank;
};

// An expert of the visit and the rows routed to it: rows()[first_row .. first_row + n_row).
struct VisitExpert {
    uint32_t expert;
    uint32_t first_row;
    uint32_t n_row;
};

// Bytes of the smallest cache with which every layer can be computed.
uint64_t slot_min_bytes(const Layout &layout);

struct StreamerStats {
    uint64_t n_hit = 0;
    uint64_t n_miss = 0;
    uint64_t n_streamed = 0;
    uint64_t n_evict = 0;
    uint64_t n_read = 0;
    uint64_t read_bytes = 0;
    uint64_t stall_ns = 0; // summed over threads
    uint64_t cache_bytes = 0;
    uint32_t n_slot = 0;
    uint32_t n_slot_used = 0;
    bool direct_io = false;
    ReaderKind reader = ReaderKind::threads;
};

class Streamer final : public ReadSink {
public:
    struct Params {
        uint64_t cache_bytes = 0;
        PolicyKind policy = PolicyKind::lfru;
        ReaderParams reader;
        bool buffered = false; // do not try O_DIRECT
    };
    Streamer(Layout layout, const Params &params);
    ~Streamer() override;

    // --- the compute side; begin_product by one thread, the rest by all threads of the product -----------------
    // Looks up, reads. Afterwards experts(), rows() are valid until the next begin_product.
    // False when the visit cannot go on; failure() says why.
    bool begin_product(uint32_t layer, uint32_t matrix, const Routing &routing);
    uint64_t visit() const { return visit_; } // number of the visit under way
    uint32_t n_expert() const { return static_cast<uint32_t>(experts_.size()); }
    const std::vector<Row> &rows() const { return rows_; }
    // Waits until `position` experts + 1 are ready. Returns which (index into experts), or -1 after a failure.
    int32_t wait_ready(uint32_t position);
    VisitExpert const &expert(uint32_t index) const { return experts_[index]; }
    const uint8_t *weights(uint32_t index) const { return weights_[index]; }
    Slice const &slice(uint32_t index) const { return spec_->slice(experts_[index].expert, matrix_); }
    // Every row of the expert at this index has been computed: its place may be used again.
    void release(uint32_t index);

    // --- the control side ----------------------------------------------------------------------------------------
    // Brackets a decode call. end_batch unpins everything, and after a failure waits for the reads under way.
    void begin_batch();
    void end_batch();
    bool failed() const { return failed_.load(std::memory_order_acquire); }
    std::string failure() const;
    void fail_visit(const std::string &why); // any thread: cancels the visit, wakes the waiting

    void set_cache_bytes(uint64_t bytes); // any thread
    StreamerStats stats() const;          // any thread
    uint32_t resident(uint32_t layer) const;
    uint64_t min_bytes() const { return min_bytes_; }
    uint64_t max_bytes() const { return max_bytes_; }
    Layout const &layout() const { return layout_; }
    FaultPlan &faults() { return faults_; }

    void on_read(uint64_t tag, const std::string &error) override;

private:
    void begin_visit(uint32_t layer, const Routing &routing);
    void end_visit();
    void group(const ExpertLayer &spec, const Routing &routing);
    void add_read(SlotId id, uint32_t expert, uint32_t matrix, uint64_t tag);
    void issue_streamed();
    void make_ready(uint32_t index);
    void apply_budget();

    Layout layout_;
    uint64_t min_bytes_ = 0;
    uint64_t max_bytes_ = 0;
    uint32_t alignment_ = 4096;
    bool direct_io_ = false;
    std::vector<std::unique_ptr<File>> files_;
    FaultPlan faults_;

    mutable std::mutex mutex_; // guards everything below but the atomics; experts_, rows_, weights_ are also read
                               // without it by the threads of a product, which begin_product precedes
    std::condition_variable changed_;
    std::unique_ptr<ExpertCache> cache_;
    StreamerStats stats_;
    uint64_t wanted_bytes_ = 0; // by set_cache_bytes, not yet in force; 0 when none
    bool in_batch_ = false;
    std::string failure_;
    std::atomic<bool> failed_{false};
    uint32_t n_in_flight_ = 0;
    uint32_t n_sleeping_ = 0;

    // The visit.
    const ExpertLayer *spec_ = nullptr;
    uint32_t layer_ = UINT32_MAX;
    uint64_t visit_ = 0;
    uint32_t matrix_ = 0;
    uint32_t done_mask_ = 0; // matrices that have been multiplied by in this visit
    std::vector<Row> rows_;
    std::vector<VisitExpert> experts_;
    std::vector<uint32_t> by_rows_; // indices, those with most rows first
    std::vector<int32_t> index_of_; // by expert of the layer: index into experts_, -1
    std::vector<SlotId> slots_;     // by index; valid where !streamed_
    std::vector<uint8_t> streamed_; // by index: passes through
    std::vector<SlotId> pinned_;    // slots pinned by the visit
    // The product.
    std::vector<const uint8_t *> weights_; // by index, set when ready
    std::vector<uint32_t> ready_;          // indices in order of readiness
    std::atomic<uint32_t> n_ready_{0};
    std::vector<SlotId> passage_;       // free slots of streamed experts
    std::vector<SlotId> in_passage_;    // by index: slot of a streamed expert under way
    std::vector<uint32_t> queue_;       // streamed experts not yet issued, last first
    std::vector<ReadRequest> requests_; // scratch

    std::unique_ptr<Reader> reader_; // last: its threads end before what they touch
};

} // namespace emoe
