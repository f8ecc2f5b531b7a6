// Brings the experts of one layer to the compute threads: looks up, evicts, reads, and says which are here.
//
// A *visit* is one passage of a batch through one mixture layer: two or three matrix products (up, gate, down) that
// use the same experts. The first product of a visit looks every routed expert up, takes slots for the missing ones
// and issues all their reads at once, in the order in which the products need them; the experts stay pinned until
// the next visit begins. Experts become *ready* for a product in the order: those here already, then arrivals.
//
// Behind the reads that somebody needs now go those that somebody will probably need soon (prefetch): one small queue
// of wishes for the next layers, made at each visit, from which a read starts only when no needed read waits. A wish
// not begun is dropped when its layer comes. Streamer says when; Predictor and Governor say what and how much.
//
// A layer all of whose experts are in memory needs none of this: its products are left to llama.cpp (whole.cpp).
//
// When a batch routes to more experts than the cache has slots (a long prefill on a small budget), the visit
// *streams*: hits stay, the others pass one matrix at a time through the remaining slots, each byte still read once.
#pragma once

#include "base/error.h"
#include "cache/cache.h"
#include "io/reader.h"
#include "pipeline/governor.h"
#include "pipeline/layout.h"
#include "pipeline/predictor.h"
#include "pipeline/price.h"
#include "pipeline/routing.h"
#include "pipeline/trace.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace emoe {

struct StreamerStats {
    uint64_t n_hit = 0;
    uint64_t n_miss = 0;
    uint64_t n_streamed = 0;
    uint64_t n_late = 0; // hits that were still on their way
    uint64_t n_evict = 0;
    uint64_t n_gpu = 0;      // uses of experts that a GPU computes beside us: neither hit nor miss
    uint64_t n_skip = 0;     // LOSSY: uses that were left out, likewise
    uint64_t skip_bytes = 0; // that were not read for that
    double price_nats = 0, spent_nats = 0;
    uint64_t n_read = 0;
    uint64_t read_bytes = 0;
    uint64_t prefetch_bytes = 0;  // of read_bytes: read ahead
    uint64_t n_prefetch = 0;      // experts read ahead, whole or in part
    uint64_t n_prefetch_used = 0; // of them used before they were given up
    uint64_t stall_ns = 0;        // summed over threads
    uint64_t drive_ns = 0;        // time with a read under way
    uint64_t cache_bytes = 0;
    uint32_t n_slot = 0;
    uint32_t n_slot_used = 0;
    bool direct_io = false;
    ReaderKind reader = ReaderKind::threads;
    bool prefetch_paused = false;
    float prefetch_threshold = 0;
    uint32_t prefetch_depth = 0;
    double with_ns = 0, without_ns = 0; // mean token, with and without reading ahead
    double with_bytes = 0, without_bytes = 0;
};

// Bits of Streamer::expert_states.
constexpr uint8_t k_state_cached = EMOE_EXPERT_RESIDENT, k_state_used = EMOE_EXPERT_USED,
                  k_state_missed = EMOE_EXPERT_MISSED, k_state_prefetched = EMOE_EXPERT_PREFETCHED,
                  k_state_skipped = EMOE_EXPERT_SKIPPED;

// For a calibration, LOSSY: uses of experts that count as missing are left out of batches when they cost less than
// limit, whatever is in memory.
struct SkipTrial {
    std::vector<float> cost;      // see Prices
    std::vector<uint8_t> missing; // by ExpertIndex
    double limit = 0;
    double spent = 0; // raw nats, so far
};

// A layer whose experts are all in memory, alike and in their order: matrix m of expert e begins at at[m] + e * stride.
struct WholeLayer {
    const uint8_t *at[k_max_matrix] = {};
    uint64_t stride = 0; // bytes; 0: the layer is not whole
};

class Streamer final : public ReadSink {
public:
    struct Params {
        uint64_t cache_bytes = 0; // raised to the least that works
        PolicyKind policy = PolicyKind::next_use;
        PrefetchMode prefetch = PrefetchMode::automatic;
        ReaderParams reader;
        FileAccess access = FileAccess::direct;
        uint32_t n_embd = 0;         // length of router inputs; 0: nothing can be predicted
        std::vector<uint8_t> on_gpu; // by ExpertIndex: 1 when a GPU has it, and we never read it; may be empty
        double price_nats = 0;       // LOSSY: missing experts may be left out in decode for so many nats a token
        Prices prices;               // for that
    };
    Streamer(Layout layout, const Params &params);
    ~Streamer() override;

    // --- the compute side; begin_product by one thread, the rest by all threads of the product -----------------
    // Looks up, reads. Afterwards experts(), rows() are valid until the next begin_product.
    // False when the visit cannot go on; failure() says why.
    bool begin_product(uint32_t layer, uint32_t matrix, const Routing &routing);
    // After the first product of a visit has begun, with its routing: learns from it and wishes for what to read ahead. By the
    // thread that began it; the others may compute meanwhile.
    void look_ahead(const Routing &routing);
    uint64_t visit() const { return visit_; } // number of the visit under way
    uint32_t n_expert() const { return static_cast<uint32_t>(groups_.experts.size()); }
    const std::vector<Row> &rows() const { return groups_.rows; }
    const std::vector<Row> &skipped() const { return groups_.skipped; }      // of the visit: they give zeros
    bool prices() const { return price_ || trial_; }                         // wants Routing::inverse_square
    const std::vector<GpuRow> &gpu_rows() const { return groups_.gpu_rows; } // of the visit: not ours to compute
    bool on_gpu(ExpertIndex expert) const { return !on_gpu_.empty() && on_gpu_[expert] != 0; }
    uint32_t n_ready() const { return n_ready_.load(std::memory_order_acquire); } // experts, so far
    // Experts pass through in this visit: each must be released. The product's end is asked for, by end_product.
    bool streams() const { return streams_; }
    bool traced() const { return trace_ != nullptr; }
    // Waits until `position` experts + 1 are ready. Returns which (index into experts), or -1 after a failure.
    int32_t wait_ready(uint32_t position);
    VisitExpert const &expert(uint32_t index) const { return groups_.experts[index]; }
    const uint8_t *weights(uint32_t index) const { return weights_[index]; }
    Slice const &slice(uint32_t index) const { return spec_->slice(groups_.experts[index].expert, matrix_); }
    // Every row of the expert at this index has been computed: its place may be used again.
    void release(uint32_t index);
    void end_product(); // by the last thread; for the trace

    // --- the control side ----------------------------------------------------------------------------------------
    // Brackets a decode call. end_batch unpins everything, and after a failure waits for the reads under way.
    void begin_batch(uint32_t n_token = 1);
    void end_batch();
    // Before each graph of a batch: what is whole from here on stays so until the next.
    void begin_graph();
    // The layer, when its products can be left to llama.cpp in this graph; else null.
    const WholeLayer *whole(uint32_t layer) const;
    // They were, with so many uses of experts: at most all of them are hits.
    void count_whole(uint32_t layer, uint64_t n_use);
    bool failed() const { return failed_.load(std::memory_order_acquire); }
    Failure failure() const;
    void fail_visit(const Failure &why); // any thread: cancels the visit, wakes the waiting

    void set_cache_bytes(uint64_t bytes); // any thread
    StreamerStats stats() const;          // any thread
    uint32_t n_cached(uint32_t layer) const;
    // One byte for each expert of a layer: EMOE_EXPERT_* bits. Any thread. While somebody looks, no layer is left to
    // llama.cpp, which would not say what it uses.
    std::vector<uint8_t> expert_states(uint32_t layer) const;
    Accuracy accuracy(uint32_t layer) const;     // any thread
    std::vector<float> rates() const;            // any thread
    void warm_start(const std::vector<float> &); // before the first batch
    void trace_to(std::unique_ptr<Trace> trace); // between batches; nullptr ends the trace
    // The router of a layer: see Predictor::set_router. Before the first batch or between batches.
    void set_router(uint32_t layer, const float *rows, const float *norm);
    bool wants_router(uint32_t layer) const;
    void set_trial(SkipTrial *trial) { trial_ = trial; } // between batches; nullptr: none
    // A file that changed since it was opened or accepted; null: none did. Looks only if something was read since the
    // last call.
    const File *changed_file();
    void accept_files();
    // Whether the files still hold what is in the cache of them.
    bool same_as_files() const;
    uint64_t min_bytes() const { return cache_->min_bytes(); }
    uint64_t max_bytes() const { return cache_->max_bytes(); }
    Layout const &layout() const { return layout_; }
    Faults &faults() { return faults_; }

    void on_read(uint64_t tag, const std::string &error) override;

private:
    void reserve_visit();
    void give_up(Failure why); // the batch, for everybody
    void begin(uint32_t layer, uint32_t matrix, const Routing &routing);
    void begin_visit(uint32_t layer, const Routing &routing);
    void look_up(uint32_t n_token);
    void end_visit();
    void stream_visit();
    void issue_streamed();
    void make_ready(uint32_t index);
    void ask_pieces(SlotId id, ExpertIndex expert, uint32_t matrices, bool ahead);
    bool submit(); // requests_; false when the system refused any
    void ended(uint64_t tag, const std::string &error);
    uint64_t drive_ns(uint64_t now) const;
    void trace_read(uint64_t tag, uint64_t now);
    void apply_cache_bytes();
    const uint8_t *at(const ExpertLayer &layer, uint32_t expert, uint32_t matrix, SlotId id) const;
    std::vector<uint8_t> states_of(uint32_t layer) const;
    // whole.cpp
    void find_whole();
    void forget_whole();
    bool all_ready(uint32_t layer) const;
    uint64_t pack(uint32_t layer, uint32_t expert);
    bool make_whole(uint32_t layer, uint64_t *packed_bytes);
    // skip.cpp
    const uint8_t *choose_skips(const Routing &routing);
    uint64_t expert_bytes(ExpertIndex expert) const;
    void count_skips(const Routing &routing);
    // ahead.cpp
    void settle_ahead(uint32_t n_token);
    void wish_ahead(const Routing &routing);
    void wish_for_layer(uint32_t layer, uint32_t d, const float *p);
    void wish_for_batch(uint32_t layer, uint32_t n_token);
    void wish_for_rest();
    bool is_asked(ExpertIndex expert) const; // all of it is here or on its way
    void add_wishes(uint32_t region);
    void drop_wishes();
    void pump(); // starts reads ahead while nothing else waits

    Layout layout_;
    uint32_t alignment_ = 4096;
    bool direct_io_ = false;
    uint32_t n_lane_ = 4;
    std::vector<std::unique_ptr<File>> files_;
    uint64_t n_read_checked_ = UINT64_MAX; // by changed_file
    std::vector<uint32_t> layer_of_;       // by ExpertIndex
    Faults faults_;
    std::vector<uint8_t> states_;       // by ExpertIndex: bits of the last visit of its layer
    std::vector<uint8_t> const on_gpu_; // see Params

    mutable std::mutex mutex_; // guards everything below but the atomics; groups_, weights_ are also read without it
                               // by the threads of a product, which begin_product precedes
    std::condition_variable changed_;
    std::unique_ptr<ExpertCache> cache_;
    std::unique_ptr<Predictor> predictor_; // nullptr: nothing can be predicted
    Governor governor_;
    bool const reads_rest_;                  // see wish_for_rest
    std::unique_ptr<PriceController> price_; // nullptr: nothing is left out
    SkipTrial *trial_ = nullptr;
    std::vector<uint8_t> skip_; // scratch: by token and rank
    double mean_bytes_ = 0;     // of an expert
    std::unique_ptr<Trace> trace_;
    StreamerStats stats_;
    uint64_t wanted_bytes_ = 0; // by set_cache_bytes, not yet in force; 0 when none
    bool in_batch_ = false;
    bool reads_ahead_ = false; // this batch
    uint32_t n_batch_token_ = 0;
    uint64_t batch_begin_ns_ = 0, batch_drive_ns_ = 0;
    uint64_t counted_bytes_ = 0; // of the reader's, those that a batch was told of
    Failure failure_;
    std::atomic<bool> failed_{false};
    uint32_t n_in_flight_ = 0; // given to the reader
    uint64_t drive_since_ns_ = 0;
    uint32_t n_sleeping_ = 0;

    // Reading ahead.
    std::deque<ExpertIndex> wishes_;                    // to be read, the most wanted first
    std::vector<uint8_t> wished_;                       // by ExpertIndex
    std::vector<ExpertIndex> ahead_;                    // read ahead, their layer not yet come
    ExpertIndex rest_ = 0;                              // all before it have been asked for, where the cache holds all
    std::vector<std::pair<float, ExpertIndex>> likely_; // scratch
    std::vector<float> habit_;                          // scratch
    std::unordered_map<uint64_t, uint64_t> asked_;      // tag to time, while tracing

    // The visit.
    bool streams_ = false;        // experts pass through
    bool look_ahead_due_ = false; // begun, and look_ahead not called yet
    const ExpertLayer *spec_ = nullptr;
    uint32_t layer_ = UINT32_MAX;
    uint64_t visit_ = 0;
    uint64_t read_visit_ = 0; // the last visit during which a read began
    uint32_t matrix_ = 0;
    uint64_t product_begin_ns_ = 0;
    uint32_t done_mask_ = 0; // matrices that have been multiplied by in this visit
    RoutingGroups groups_;
    std::vector<Use> uses_;         // scratch
    std::vector<uint32_t> missing_; // indices without a slot
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

    // Layers left to llama.cpp. Changed between graphs only, so that one may be computed without the lock.
    std::vector<WholeLayer> whole_; // by layer
    uint32_t n_whole_ = 0;
    bool leaves_whole_ = false;      // in this graph
    mutable uint32_t n_watched_ = 0; // graphs for which somebody watches

    std::unique_ptr<Reader> reader_; // last: its threads end before what they touch
};

} // namespace emoe
