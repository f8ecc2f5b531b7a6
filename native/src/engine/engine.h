// A model opened for generation: llama.cpp computes the dense part, the streamer feeds the experts.
#pragma once

#include "engine/waiting.h"
#include "llama/dense.h"
#include "llama/gpu.h"
#include "llama/index.h"
#include "llama/interposer.h"
#include "llama/measure.h"
#include "llama/owned.h"
#include "llama/picture.h"
#include "llama/shell.h"
#include "llama/tables.h"
#include "llama/text.h"
#include "llama/tier.h"
#include "pipeline/streamer.h"

#include <edgemoe.h>

#include <llama.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace emoe {

// Of a sequence's state: all of it, or what cannot be cut: recurrent states and sliding windows.
enum class StatePart { whole, checkpoint };

class Engine : public TextModel {
public:
    // cache_bytes: raised to the least that works.
    Engine(const ModelIndex &index, const std::string &shell_path, const emoe_setup &setup, uint64_t cache_bytes);

    void decode(const int32_t *tokens, uint32_t n, bool want_all);
    // At most k_max_columns tokens in one graph, each rounded as if decoded alone; logits of all.
    void verify(const int32_t *tokens, uint32_t n);
    // One token each of n sequences in one graph, each rounded as if decoded alone.
    void step(const uint32_t *sequences, const int32_t *tokens, uint32_t n);
    // Encodes a picture and keeps its rows, in memory that the cache lends, until they are forgotten. Its number.
    uint64_t add_picture(const std::string &encoder, const uint8_t *bytes, uint64_t n_bytes);
    const Picture &picture(uint64_t id) const;
    void forget_picture(uint64_t id);
    void decode_picture(uint64_t id, uint32_t part); // the rows of a part, after what is in the sequence; no logits
    // The sequence that all calls that name none are about.
    void select(uint32_t sequence);
    uint32_t n_sequence() const { return static_cast<uint32_t>(sequences_.size()); }
    // Vocabulary and logits of a sequence: those of its last computation.
    const TextModel &text(uint32_t sequence) const;
    // Why `verify` cannot be used with this model, empty when it can.
    std::string no_verify() const;
    const float *logits(uint32_t i) const override;
    uint32_t n_past() const { return sequences_[selected_].n_past; }
    void rewind(uint32_t n);
    bool can_cut() const;       // a state that was taken up again
    uint64_t state_key() const; // of the model's file, the setup and this library
    uint64_t state_bytes(StatePart part);
    uint64_t get_state(StatePart part, uint8_t *buf, uint64_t cap);
    // A checkpoint: of a sequence that still begins with its tokens.
    void set_state(StatePart part, const uint8_t *buf, uint64_t n_bytes);
    void cancel();
    void clear_cancel();                  // a cancel sticks from here on, until the next clear_cancel
    void set_cache_bytes(uint64_t bytes); // any thread
    emoe_stats stats() const;
    // Between decode calls. The collector must live as long as it is set.
    void set_collector(Collector *collector) { interposer_->set_collector(collector); }
    // Likewise; nullptr: none.
    void set_trial(SkipTrial *trial) { streamer_->set_trial(trial); }
    Streamer &streamer() const { return *streamer_; }

    const llama_vocab *vocab() const override { return vocab_; }
    uint32_t n_ctx() const { return n_ctx_; }
    // Row i of the last decode call as an index for llama_get_logits_ith; -2 when there is none.
    int32_t output_index(uint32_t i) const;

private:
    struct Loading;
    struct Span { // of a picture in a sequence
        uint32_t begin, n_row, n_position;
    };
    // Of several, each keeps its logits while others are computed; those of one alone are llama.cpp's.
    struct Sequence : TextModel {
        const llama_vocab *vocab() const override { return words; }
        const float *logits(uint32_t i) const override;
        const llama_vocab *words = nullptr;
        uint32_t place = 0; // llama.cpp's number for it, hence its part of the KV cache
        uint32_t n_past = 0;
        std::vector<Span> spans; // in order
        uint32_t n_row = 0;      // of kept
        std::vector<float> kept;
    };
    void load(const ModelIndex &index, const std::string &shell_path, uint64_t cache_bytes);
    void load_model(const ModelIndex &index, const Loading &loading);
    void make_context(const Loading &loading);
    void look_at_graph();
    void dry_run();
    void dry_step();
    void probe();
    void check_files(); // throws, now and ever after, when a file was written to
    enum class Rounding { batch, columns };
    void run(const int32_t *tokens, uint32_t n, bool want_all, Rounding rounding);
    uint64_t attempt(uint32_t n, const std::function<void()> &computing, const std::function<void()> &undo);
    void check_tokens(const int32_t *tokens, uint32_t n) const;
    // members: the sequence of all tokens, or of each one.
    llama_batch batch_of(uint32_t n, const std::vector<Sequence *> &members); // without what is computed
    void compute(const int32_t *tokens, uint32_t n, const std::vector<Sequence *> &members, Rounding rounding);
    void compute(const llama_batch &batch, const std::vector<Sequence *> &members, Rounding rounding);
    static std::optional<llama_pos> position(const Sequence &sequence, uint32_t n);
    void forget_after(Sequence &sequence, uint32_t n);
    bool sees_before(const Sequence &sequence, llama_pos at) const; // all that a token there attends to is there
    void keep_logits(Sequence &sequence, uint32_t first_row, uint32_t n_row);
    void make_neighbours(const std::vector<Sequence *> &members);
    bool exchange(Sequence &a, Sequence &b);
    Sequence &selected() { return sequences_[selected_]; }
    // Cache bytes to the work space of a large batch, or to states. False where there are not as many.
    bool lend(uint64_t bytes);
    void take_back();               // after it
    void keep_lent(uint64_t bytes); // for what stays after `take_back`: rows of pictures
    void give_up_lent(uint64_t bytes);

    uint64_t const identity_; // of the model's files
    emoe_setup const setup_;  // but its pointers, which were valid while it was made
    GpuParts gpu_parts_;
    std::unique_ptr<GpuExperts> gpu_;
    std::unique_ptr<GpuTier> tier_;
    std::unique_ptr<Streamer> streamer_; // outlives the context, whose graph calls into it
    std::unique_ptr<DenseWeights> dense_;
    std::unique_ptr<TableNodes> tables_;
    std::unique_ptr<Interposer> interposer_;
    LlamaModelPtr model_;
    LlamaContextPtr ctx_;
    const llama_vocab *vocab_ = nullptr;
    ContextBuffers buffers_;
    WorkSpace work_;
    Waiting waiting_;
    uint32_t n_ctx_ = 0; // of each sequence
    std::vector<Sequence> sequences_;
    uint32_t selected_ = 0;
    uint32_t n_output_ = 0; // rows of logits of the last call
    bool all_outputs_ = false;
    bool dry_ = false; // the graph is only looked at
    Failure stale_;    // why nothing more can be computed
    std::atomic<bool> cancelled_{false};
    bool keeps_cancel_ = false;
    std::mutex cache_mutex_; // guards the next three
    uint64_t cache_bytes_ = 0;
    uint64_t lent_bytes_ = 0;
    uint64_t kept_bytes_ = 0;    // of lent_bytes_, what `take_back` leaves
    std::vector<int8_t> wanted_; // scratch of a batch: which tokens' logits
    std::vector<llama_pos> pos_;
    std::vector<llama_seq_id> places_;
    std::vector<llama_seq_id *> place_of_;
    std::vector<int32_t> n_place_;
    std::map<uint64_t, Picture> pictures_; // by number
    uint64_t last_picture_ = 0;
    std::atomic<uint64_t> n_decode_{0}, n_prefill_{0}, decode_ns_{0}, prefill_ns_{0};
};

} // namespace emoe
