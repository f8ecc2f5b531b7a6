#include "engine/engine.h"

#include "base/clock.h"
#include "base/error.h"
#include "llama/devices.h"
#include "llama/log.h"
#include "llama/prices.h"
#include "llama/profile.h"
#include "llama/refusals.h"

#include <algorithm>
#include <mutex>

namespace emoe {

namespace {

// Tokens at once from which on GPUs compute with kernels for batches.
constexpr uint32_t k_batched_tokens = 9;

Failure cancelled() { return {EMOE_ERR_CANCELLED, "cancelled"}; }

ReaderParams reader_params(const emoe_setup &p) {
    ReaderParams r;
    r.kind = static_cast<ReaderKind>(p.reader);
    r.n_lane = p.n_read_lane == 0 ? 4 : p.n_read_lane;
    r.bytes_per_s = p.read_bytes_per_s;
    return r;
}

Streamer::Params streamer_params(const ModelIndex &index, const emoe_setup &p, uint64_t cache_bytes,
                                 const GpuParts &gpu_parts) {
    Streamer::Params s;
    s.on_gpu = gpu_parts.experts(index.layout);
    s.price_nats = p.lossy_nats;
    if (p.lossy_nats > 0) s.prices = load_prices(index, p.profile);
    s.n_embd = p.lossy_nats > 0 ? 0 : index.n_router_input; // nothing is guessed: see Streamer::begin_batch
    s.prefetch = static_cast<PrefetchMode>(p.prefetch);
    s.cache_bytes = cache_bytes;
    s.policy = static_cast<PolicyKind>(p.policy);
    s.reader = reader_params(p);
    s.access = static_cast<FileAccess>(p.buffered);
    return s;
}

} // namespace

Engine::Engine(const ModelIndex &index, const std::string &shell_path, const emoe_setup &setup, uint64_t cache_bytes)
    : identity_(index.identity), setup_(setup),
      gpu_parts_(index, setup.device, setup.n_gpu_layer,
                 std::vector<uint32_t>(setup.gpu_experts, setup.gpu_experts + setup.n_gpu_expert)),
      streamer_(std::make_unique<Streamer>(index.layout, streamer_params(index, setup, cache_bytes, gpu_parts_))),
      waiting_(setup.n_threads) {
    if (setup.profile) streamer_->warm_start(load_uses(index, setup.profile));
    dense_ = std::make_unique<DenseWeights>(index, static_cast<FileAccess>(setup.buffered), setup.row_cache_bytes == 0);
    RowReader::Params rows;
    rows.bytes = setup.row_cache_bytes;
    rows.reader = reader_params(setup);
    rows.access = static_cast<FileAccess>(setup.buffered);
    tables_ = std::make_unique<TableNodes>(index, rows, streamer_->faults(),
                                           [this](const Failure &why) { streamer_->fail_visit(why); });
    check_unchanged(index); // the files were opened by name, the index is from before
    load(index, shell_path, cache_bytes);
}

// What a model is loaded with: its shell, the log lines that say how far llama.cpp has come, and what was mapped before.
struct Engine::Loading {
    Loading(const ModelIndex &index, const std::string &shell_path, bool need_data, bool gpu_experts)
        : path(shell_path), extent(check_shell(index, shell_path, need_data)), shell(shell_path, extent),
          log([this, gpu_experts](const std::string &line) {
              // Printed after the file was opened and its size checked, before it is mapped (see shell.h).
              if (line.find("loading model tensors") != std::string::npos) shell.shorten();
              // After the mapping, before the data: what goes to a GPU is copied from it, experts too (filled in
              // dry_run).
              if (gpu_experts && line.find("model buffer size") != std::string::npos) shell.lengthen();
          }),
          before(mappings_of(shell_path)) {}

    // Where the model under way is mapped, 0 when nobody says.
    uintptr_t mapping() const {
        uintptr_t found = 0;
        for (uintptr_t const m : mappings_of(path))
            if (std::find(before.begin(), before.end(), m) == before.end()) found = m;
        return found;
    }
    // A progress_callback: the zeros that stand for a GPU's experts are copied from the mapping, and the pages of each
    // tensor are dropped after it.
    static bool drop_holes(float progress, void *self) {
        auto const *l = static_cast<const Loading *>(self);
        if (progress >= 1.0f) return true; // the last call comes when parts are unmapped already
        if (uintptr_t const m = l->mapping())
            drop_mapped_pages(reinterpret_cast<void *>(m + l->extent.dense_end),
                              l->extent.full_end - l->extent.dense_end);
        return true;
    }
    std::string why() const { return log.last_error("no reason given"); }

    std::string const path;
    ShellExtent const extent;
    ShellLoad const shell;
    LogCapture const log;
    std::vector<uintptr_t> const before; // mappings of other engines of this process
};

void Engine::load(const ModelIndex &index, const std::string &shell_path, uint64_t cache_bytes) {
    // One load at a time in this process: the log is process-wide. Between processes the shell is locked.
    static std::mutex loading_mutex;
    std::lock_guard<std::mutex> const lock(loading_mutex);
    AssertionGuard const guard;
    // A GPU is filled from the shell's mapping; else only what is declared there is wanted, for as long as loading takes.
    bool const need_data = shell_needs_data(setup_);
    std::unique_ptr<MemoryShell> in_memory;
    if (shell_path.empty()) in_memory = std::make_unique<MemoryShell>(index);
    Loading const loading(index, in_memory ? in_memory->path() : shell_path, need_data, gpu_parts_.any_experts());
    load_model(index, loading);
    interposer_ = std::make_unique<Interposer>(*streamer_, *dense_, *tables_, gpu_.get());
    if (!gpu_parts_.tier().empty()) {
        tier_ = std::make_unique<GpuTier>(index, gpu_parts_.device(), gpu_parts_.tier(), setup_.n_ubatch);
        interposer_->set_tier(tier_.get());
    }
    make_context(loading);
    buffers_ = parse_buffers(loading.log.text(), gpu_name(setup_.device));
    buffers_.output_bytes = output_bytes(buffers_, index, setup_);
    work_ = WorkSpace(index, setup_, buffers_.compute_bytes);
    set_cache_bytes(std::max(cache_bytes, streamer_->min_bytes() + work_.extra_bytes(work_.n_ubatch())));
    look_at_graph();
    check_files();
    loading.shell.drop_pages();
}

void Engine::load_model(const ModelIndex &index, const Loading &loading) {
    llama_model_params mp = model_params();
    note_loaded();
    gpu_parts_.apply(&mp);
    if (gpu_parts_.any_experts()) {
        mp.progress_callback_user_data = const_cast<Loading *>(&loading);
        mp.progress_callback = Loading::drop_holes;
    }
    model_.reset(llama_model_load_from_file(loading.path.c_str(), mp));
    if (!model_) fail(EMOE_ERR_FORMAT, "llama.cpp refuses the model: %s", loading.why().c_str());
    check_model(model_.get());
    if (emoe::n_sequence(setup_) > 1) check_sequences(model_.get(), setup_.device != 0);
    vocab_ = llama_model_get_vocab(model_.get());
    dense_->set_mapping(index, loading.mapping(), loading.extent);
    gpu_ = std::make_unique<GpuExperts>(index, gpu_parts_);
}

void Engine::make_context(const Loading &loading) {
    llama_context_params cp = context_params(setup_);
    cp.cb_eval = Interposer::on_node;
    cp.cb_eval_user_data = interposer_.get();
    cp.abort_callback = [](void *self) {
        auto const *engine = static_cast<const Engine *>(self);
        return engine->dry_ || engine->streamer_->failed() || engine->interposer_->failure() ||
               !engine->interposer_->column_violation().empty();
    };
    cp.abort_callback_data = this;
    ctx_.reset(llama_init_from_model(model_.get(), cp));
    if (!ctx_)
        fail(EMOE_ERR_MEMORY, "llama.cpp cannot make a context of %u tokens: %s", setup_.n_ctx, loading.why().c_str());
    check_context(ctx_.get());
    if (setup_.device == 0) interposer_->set_context(ctx_.get());
    n_ctx_ = llama_n_ctx_seq(ctx_.get());
    sequences_.resize(emoe::n_sequence(setup_));
    for (uint32_t i = 0; i < sequences_.size(); i++) {
        sequences_[i].words = vocab_;
        sequences_[i].place = i;
    }
}

// Before the first answer. On this thread alone, where a failed assertion of ggml is an error; on one of its own it would
// be the end of the process. (With a GPU the CPU computes little, and its kernels are what is waited for.)
void Engine::look_at_graph() {
    bool const on_cpu = setup_.device == 0;
    auto const n_threads = static_cast<int32_t>(setup_.n_threads);
    if (on_cpu) llama_set_n_threads(ctx_.get(), 1, 1);
    try {
        dry_run();
        if (on_cpu) probe();
        if (n_sequence() > 1) dry_step();
    } catch (const Error &) {
        // What was seen of the graph says more than an assertion.
        if (interposer_->failure()) interposer_->failure().raise();
        throw;
    }
    llama_set_n_threads(ctx_.get(), n_threads, n_threads);
    if (setup_.lossy_nats > 0 && !interposer_->shows_router_weights())
        fail(EMOE_ERR_UNSUPPORTED, "this model's experts cannot be left out at a price: its graph hides their weights");
}

// Shows the graph of one token to the interposer: the dense weights move, and what cannot be streamed is found now and
// not in the middle of an answer. On the CPU almost nothing of it is computed. With a GPU the graph comes in pieces, each
// shown when those before it are computed: there the token is computed, and a few at once after it, so that what the
// driver loads with its kernels is in the process before the budget is divided.
void Engine::dry_run() {
    llama_token const token = std::max(llama_vocab_bos(vocab_), 0);
    bool const on_gpu = setup_.device != 0;
    dry_ = !on_gpu;
    if (dry_) interposer_->columns().begin_learning();
    interposer_->set_checking(true);
    // The batch first: Mesa's software driver corrupts memory when some models begin with a single token, in stock
    // llama.cpp too (docs/devices.md).
    uint32_t const n_batch = on_gpu ? std::min(k_batched_tokens, setup_.n_ubatch) : 1;
    for (uint32_t const n : {n_batch, 1u}) {
        std::vector<llama_token> tokens(n, token);
        interposer_->begin_graph();
        streamer_->begin_batch(n);
        (void)llama_decode(ctx_.get(), llama_batch_get_one(tokens.data(), static_cast<int32_t>(n)));
        llama_synchronize(ctx_.get());
        Failure const failure = streamer_->failure();
        streamer_->end_batch();
        if (failure) failure.raise();
        if (!on_gpu || interposer_->failure()) break;
    }
    llama_memory_clear(llama_get_memory(ctx_.get()), true);
    interposer_->columns().end();
    interposer_->set_checking(false);
    dry_ = false;
    interposer_->begin_graph();
    if (interposer_->failure()) interposer_->failure().raise();
    if (gpu_->n_missing() != 0)
        fail(EMOE_ERR_UNSUPPORTED, "this model cannot be streamed: its graph leaves out experts of the GPU");
    if (interposer_->n_rewritten() == 0 && !gpu_parts_.any_experts())
        fail(EMOE_ERR_UNSUPPORTED, "this model cannot be streamed: its graph never multiplies by its experts");
}

// Computes the dense part of a token: what the CPU takes in which place is known to ggml alone.
void Engine::probe() {
    llama_token token = std::max(llama_vocab_bos(vocab_), 0);
    LogCapture const log;
    interposer_->set_probing(true);
    interposer_->begin_graph();
    int const rc = llama_decode(ctx_.get(), llama_batch_get_one(&token, 1));
    interposer_->set_probing(false);
    interposer_->begin_graph();
    llama_memory_clear(llama_get_memory(ctx_.get()), true);
    if (interposer_->failure()) interposer_->failure().raise();
    if (rc != 0)
        fail(EMOE_ERR_UNSUPPORTED, "llama.cpp cannot compute this model (%d): %s", rc,
             log.last_error("no reason given").c_str());
}

void Engine::check_files() {
    RowReader *const rows = tables_->rows();
    const File *file = streamer_->changed_file();
    if (!file && rows) file = rows->changed_file();
    if (!file) return;
    // Moved, or written anew as it was: nothing is mixed where it holds all that was taken of it.
    if (dense_->same_as_files() && streamer_->same_as_files() && (!rows || rows->same_as_files())) {
        if (rows) rows->accept_files();
        return streamer_->accept_files();
    }
    stale_ = {EMOE_ERR_IO,
              "`" + file->path() + "` was written to while it was in use: its parts no longer belong together"};
    stale_.raise();
}

void Engine::decode(const int32_t *tokens, uint32_t n, bool want_all) { run(tokens, n, want_all, Rounding::batch); }

std::string Engine::no_verify() const { return no_columns(model_.get(), setup_.device != 0); }

void Engine::verify(const int32_t *tokens, uint32_t n) {
    if (n > k_max_columns) fail(EMOE_ERR_ARGUMENT, "%u tokens at once: at most %u can be verified", n, k_max_columns);
    std::string const why = no_verify();
    if (!why.empty()) fail(EMOE_ERR_UNSUPPORTED, "this model cannot verify drafts: %s", why.c_str());
    run(tokens, n, true, n == 1 ? Rounding::batch : Rounding::columns);
}

void Engine::run(const int32_t *tokens, uint32_t n, bool want_all, Rounding rounding) {
    uint32_t const n_ubatch = setup_.n_ubatch;
    if (want_all && (n > setup_.n_outputs || n > n_ubatch))
        fail(EMOE_ERR_ARGUMENT, "logits of %u tokens were asked for, but the engine was opened for %u at a time", n,
             std::min(setup_.n_outputs, n_ubatch));
    Sequence &sequence = selected();
    uint32_t const begin = sequence.n_past;
    if (n > n_ctx_ - begin)
        fail(EMOE_ERR_CONTEXT, "%u tokens do not fit: the context holds %u and has %u", n, n_ctx_, begin);
    check_tokens(tokens, n);
    sequence.n_row = 0;
    auto const pieces = [&] {
        for (uint32_t done = 0; done < n; done += n_ubatch) {
            uint32_t const piece = std::min(n_ubatch, n - done);
            wanted_.assign(piece, want_all ? 1 : 0);
            if (done + piece == n) wanted_.back() = 1;
            compute(tokens + done, piece, {&sequence}, rounding);
        }
    };
    uint64_t const took = attempt(n, pieces, [&] { forget_after(sequence, begin); });
    bool const decodes = n == 1 || rounding == Rounding::columns;
    (decodes ? decode_ns_ : prefill_ns_) += took;
    (decodes ? n_decode_ : n_prefill_) += decodes ? 1 : n; // of verified tokens the host knows how many it keeps
    all_outputs_ = want_all;
    n_output_ = want_all ? n : 1;
    if (n_sequence() > 1) keep_logits(sequence, 0, n_output_);
}

void Engine::check_tokens(const int32_t *tokens, uint32_t n) const {
    auto const n_vocab = static_cast<uint32_t>(llama_vocab_n_tokens(vocab_));
    if (stale_) stale_.raise();
    if (n == 0) fail(EMOE_ERR_ARGUMENT, "no tokens to compute");
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || static_cast<uint32_t>(tokens[i]) >= n_vocab)
            fail(EMOE_ERR_ARGUMENT, "token %d is not in the vocabulary of %u", tokens[i], n_vocab);
}

// A call that computes n tokens, and how long it took, ns. undo: what makes the sequences what they were, on failure.
uint64_t Engine::attempt(uint32_t n, const std::function<void()> &computing, const std::function<void()> &undo) {
    if (!keeps_cancel_) cancelled_.store(false);
    n_output_ = 0;
    if (uint64_t const extra = work_.extra_bytes(n); extra > lent_bytes_ - kept_bytes_) lend(extra);
    streamer_->begin_batch(n);
    if (cancelled_.load()) streamer_->fail_visit(cancelled()); // between the last call and this one's begin_batch
    uint64_t const t0 = now_ns();
    try {
        computing();
        check_files();
    } catch (...) {
        streamer_->end_batch();
        take_back();
        undo();
        throw;
    }
    streamer_->end_batch();
    take_back();
    return now_ns() - t0;
}

void Engine::set_cache_bytes(uint64_t bytes) {
    require_cache_bytes(bytes, streamer_->min_bytes() + work_.extra_bytes(work_.n_ubatch()));
    std::lock_guard<std::mutex> const lock(cache_mutex_);
    cache_bytes_ = bytes;
    // States under way (exchange) may be more than a batch's work space: what is lent then is back in a moment.
    streamer_->set_cache_bytes(std::max(bytes - std::min(bytes, lent_bytes_), streamer_->min_bytes()));
}

bool Engine::lend(uint64_t bytes) {
    std::lock_guard<std::mutex> const lock(cache_mutex_);
    bytes += kept_bytes_;
    if (cache_bytes_ < streamer_->min_bytes() + bytes) return false;
    lent_bytes_ = bytes;
    streamer_->set_cache_bytes(cache_bytes_ - bytes);
    return true;
}

void Engine::keep_lent(uint64_t bytes) {
    std::lock_guard<std::mutex> const lock(cache_mutex_);
    kept_bytes_ += bytes;
    lent_bytes_ = std::max(lent_bytes_, kept_bytes_);
}

void Engine::give_up_lent(uint64_t bytes) {
    std::lock_guard<std::mutex> const lock(cache_mutex_);
    kept_bytes_ -= bytes;
}

// Not while every expert has a slot all the same: the next batch would only have to touch its pages anew. The tokens are
// computed already: where memory lacks, the cache stays small until the next batch begins.
void Engine::take_back() {
    std::lock_guard<std::mutex> const lock(cache_mutex_);
    if (lent_bytes_ == kept_bytes_ || cache_bytes_ - lent_bytes_ >= streamer_->max_bytes()) return;
    interposer_->release_work();
    lent_bytes_ = kept_bytes_;
    try {
        streamer_->set_cache_bytes(
            std::max(cache_bytes_ - std::min(cache_bytes_, lent_bytes_), streamer_->min_bytes()));
    } catch (const std::bad_alloc &) {
    }
}

llama_batch Engine::batch_of(uint32_t n, const std::vector<Sequence *> &members) {
    places_.resize(n);
    place_of_.resize(n);
    n_place_.assign(n, 1);
    for (uint32_t i = 0; i < n; i++) {
        places_[i] = static_cast<llama_seq_id>(members[members.size() == 1 ? 0 : i]->place);
        place_of_[i] = &places_[i];
    }
    llama_batch batch = {};
    batch.n_tokens = static_cast<int32_t>(n);
    batch.n_seq_id = n_place_.data();
    batch.seq_id = place_of_.data();
    batch.logits = wanted_.data();
    return batch;
}

void Engine::compute(const int32_t *tokens, uint32_t n, const std::vector<Sequence *> &members, Rounding rounding) {
    llama_batch batch = batch_of(n, members);
    batch.token = const_cast<int32_t *>(tokens);
    pos_.resize(n);
    for (uint32_t i = 0; i < n; i++) {
        bool const alone = members.size() == 1;
        Sequence const &sequence = *members[alone ? 0 : i];
        pos_[i] = *position(sequence, sequence.n_past) + (alone ? static_cast<llama_pos>(i) : 0);
    }
    batch.pos = pos_.data();
    compute(batch, members, rounding);
}

void Engine::compute(const llama_batch &batch, const std::vector<Sequence *> &members, Rounding rounding) {
    auto const n = static_cast<uint32_t>(batch.n_tokens);
    LogCapture const log;
    streamer_->begin_graph();
    interposer_->begin_graph();
    if (rounding == Rounding::columns) {
        std::vector<uint32_t> n_past;
        for (Sequence const *member : members) n_past.push_back(member->n_past);
        interposer_->columns().begin(std::move(n_past));
    }
    waiting_.begin();
    int const rc = llama_decode(ctx_.get(), batch);
    waiting_.end();
    interposer_->columns().end();
    if (Failure const failure = streamer_->failure()) failure.raise();
    if (interposer_->failure()) interposer_->failure().raise();
    if (!interposer_->column_violation().empty())
        fail(EMOE_ERR_UNSUPPORTED, "this model cannot %s: %s",
             members.size() == 1 ? "verify drafts" : "compute several answers at once",
             interposer_->column_violation().c_str());
    if (rc == 1) fail(EMOE_ERR_CONTEXT, "no room for %u tokens in the KV cache of %u", n, n_ctx_);
    if (rc != 0)
        fail(EMOE_ERR_INTERNAL, "llama.cpp failed to compute (%d): %s", rc, log.last_error("no reason given").c_str());
    for (Sequence *member : members) member->n_past += members.size() == 1 ? n : 1;
}

void Engine::cancel() {
    cancelled_.store(true);
    streamer_->fail_visit(cancelled());
}

void Engine::clear_cancel() {
    keeps_cancel_ = true;
    cancelled_.store(false);
}

emoe_stats Engine::stats() const {
    emoe_stats out = {};
    StreamerStats const s = streamer_->stats();
    out.n_slot = s.n_slot;
    out.n_slot_used = s.n_slot_used;
    out.direct_io = s.direct_io ? 1 : 0;
    out.page_cache = setup_.buffered == EMOE_READ_PAGE_CACHE ? 1 : 0;
    out.reader = static_cast<uint32_t>(s.reader);
    out.n_decode = n_decode_;
    out.n_prefill = n_prefill_;
    out.decode_ns = decode_ns_;
    out.prefill_ns = prefill_ns_;
    out.n_hit = s.n_hit;
    out.n_miss = s.n_miss;
    out.n_evict = s.n_evict;
    out.n_read = s.n_read;
    out.read_bytes = s.read_bytes;
    out.stall_ns = s.stall_ns / std::max(1u, setup_.n_threads);
    out.cache_bytes = s.cache_bytes;
    out.dense_bytes = dense_->bytes();
    out.kv_bytes = buffers_.kv_bytes;
    out.compute_bytes = buffers_.compute_bytes;
    out.n_gpu = s.n_gpu;
    out.gpu_bytes = buffers_.gpu_bytes + buffers_.gpu_model_bytes + (tier_ ? tier_->gpu_bytes() : 0);
    out.output_bytes = buffers_.output_bytes;
    out.scratch_bytes = work_.scratch_bytes();
    out.decode_bytes = work_.decode_bytes();
    out.prefill_bytes = work_.extra_bytes(work_.n_ubatch());
    out.n_streamed = s.n_streamed;
    out.n_late = s.n_late;
    out.n_prefetch = s.n_prefetch;
    out.n_prefetch_used = s.n_prefetch_used;
    out.prefetch_bytes = s.prefetch_bytes;
    out.drive_ns = s.drive_ns;
    out.prefetch_paused = s.prefetch_paused ? 1 : 0;
    out.prefetch_depth = s.prefetch_depth;
    out.prefetch_threshold = s.prefetch_threshold;
    out.n_skip = s.n_skip;
    out.skip_bytes = s.skip_bytes;
    out.lossy_nats = s.price_nats;
    out.spent_nats = s.spent_nats;
    out.with_ns = static_cast<uint64_t>(s.with_ns);
    out.without_ns = static_cast<uint64_t>(s.without_ns);
    out.untouched_bytes = out.decode_bytes - work_.loaded_bytes() + out.output_bytes;
    if (const RowReader *rows = tables_->rows()) {
        out.row_cache_bytes = setup_.row_cache_bytes;
        out.untouched_bytes += out.row_cache_bytes;
        out.n_row_hit = rows->n_hit();
        out.n_row_miss = rows->n_miss();
        out.row_read_bytes = rows->read_bytes();
    }
    return out;
}

} // namespace emoe
