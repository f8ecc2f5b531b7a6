#include "pipeline/streamer.h"

#include "base/clock.h"

#include <algorithm>

namespace emoe {

namespace {

// A read's tag: what to do with its completion.
// Into the cache: class, slot, read ahead or not, matrices. Passing through: k_streamed and the index in the visit.
constexpr uint64_t k_streamed = uint64_t{1} << 63;
uint64_t slot_tag(SlotId id, uint32_t matrices, bool ahead) {
    return uint64_t{id.cls} << 48 | uint64_t{id.slot} << 16 | uint64_t{ahead} << 8 | matrices;
}
SlotId tag_slot(uint64_t tag) { return SlotId{static_cast<uint32_t>(tag >> 48), static_cast<uint32_t>(tag >> 16)}; }
bool tag_ahead(uint64_t tag) { return (tag >> 8 & 1) != 0; }
uint32_t tag_matrices(uint64_t tag) { return static_cast<uint32_t>(tag & 0xff); }

// Reads in passage at least, when a visit streams: two, so that one is read while the other is computed.
constexpr uint32_t k_min_passage = 2;

// Checks of an atomic before a thread sleeps: a few microseconds, less than a wake-up costs. More would take the
// core from the reader's threads.
constexpr int k_spin = 400;

// Visits between two looks at how the cache is divided among classes of slots.
constexpr uint64_t k_rebalance = 64;

// Graphs after somebody looked at the experts' states in which every layer says which of them it uses.
constexpr uint32_t k_watched = 64;

// Tokens without any read after which nothing is guessed, until the next miss.
constexpr uint64_t k_quiet = 4;

uint32_t largest_layer(const Layout &layout) {
    uint32_t most = 0;
    for (ExpertLayer const &layer : layout.layers) most = std::max(most, layer.n_expert);
    return most;
}

} // namespace

Streamer::Streamer(Layout layout, const Params &params)
    : layout_(std::move(layout)), n_lane_(params.reader.n_lane), states_(layout_.n_expert_total, 0),
      on_gpu_(params.on_gpu), governor_(params.prefetch), reads_rest_(params.prefetch != PrefetchMode::off),
      wished_(layout_.n_expert_total, 0), groups_(largest_layer(layout_)), whole_(layout_.layers.size()) {
    direct_io_ = true;
    alignment_ = 512;
    for (std::string const &path : layout_.paths) {
        files_.push_back(std::make_unique<File>(path, params.access));
        alignment_ = std::max(alignment_, files_.back()->alignment());
        direct_io_ = direct_io_ && files_.back()->direct();
    }
    place_experts(&layout_, alignment_);
    layer_of_.resize(layout_.n_expert_total);
    for (uint32_t l = 0; l < layout_.layers.size(); l++)
        for (uint32_t e = 0; e < layout_.layers[l].n_expert; e++) layer_of_[layout_.layers[l].first + e] = l;
    PolicyShape const shape = layout_.shape();
    cache_ = std::make_unique<ExpertCache>(slot_classes(layout_, on_gpu_), make_policy(params.policy, shape));
    cache_->set_bytes(std::max(params.cache_bytes, cache_->min_bytes()));
    for (ExpertIndex e = 0; e < layout_.n_expert_total; e++)
        mean_bytes_ += static_cast<double>(expert_bytes(e)) / layout_.n_expert_total;
    if (params.price_nats > 0) price_ = std::make_unique<PriceController>(params.prices, params.price_nats);
    if (params.n_embd != 0 && params.prefetch != PrefetchMode::off)
        predictor_ = std::make_unique<Predictor>(shape, params.n_embd);
    ReaderParams reader = params.reader;
    if (!direct_io_) reader.kind = ReaderKind::threads; // a buffered file's pages are dropped after each pread
    reserve_visit();
    reader_ = make_reader(reader, faults_, *this);
}

// What is written while slots are taken and reads are under way: there it may not have to be made.
void Streamer::reserve_visit() {
    size_t const n = largest_layer(layout_);
    for (auto *list : {&missing_, &ready_, &queue_}) list->reserve(n);
    for (auto *list : {&slots_, &pinned_, &passage_, &in_passage_}) list->reserve(n);
    streamed_.reserve(n);
    weights_.reserve(n);
    requests_.reserve(n * k_max_matrix);
    ahead_.reserve(layout_.n_expert_total);
}

Streamer::~Streamer() = default;

// ---------------------------------------------------------------- control

void Streamer::begin_batch(uint32_t n_token) {
    std::lock_guard<std::mutex> lock(mutex_);
    in_batch_ = true;
    n_batch_token_ = n_token;
    // What is left out is decided by what the cache keeps, not by what a guess happened to bring.
    reads_ahead_ = !(price_ && n_token == 1) && governor_.reads_ahead(n_token);
    if (price_) price_->begin_token();
    failure_ = Failure{};
    failed_.store(false, std::memory_order_release);
    apply_cache_bytes();
    batch_begin_ns_ = now_ns();
    batch_drive_ns_ = drive_ns(batch_begin_ns_);
}

void Streamer::end_batch() {
    std::unique_lock<std::mutex> lock(mutex_);
    uint64_t const now = now_ns();
    // Bytes since the batch before: what that one left under way is nobody else's.
    uint64_t const read_bytes = reader_->read_bytes() - counted_bytes_;
    counted_bytes_ += read_bytes;
    if (n_batch_token_ == 1 && !failed_.load(std::memory_order_relaxed)) {
        if (price_)
            price_->end_token();
        else
            governor_.end_token(now - batch_begin_ns_, drive_ns(now) - batch_drive_ns_, read_bytes);
    }
    if (trace_) trace_->batch(n_batch_token_, batch_begin_ns_, now, reads_ahead_);
    drop_wishes();
    // After a failure reads may still be writing into slots; nothing may be given up under them.
    n_sleeping_++;
    changed_.wait(lock, [this] { return n_in_flight_ == 0 || !failed_.load(std::memory_order_relaxed); });
    n_sleeping_--;
    end_visit();
    in_batch_ = false;
    apply_cache_bytes();
}

Failure Streamer::failure() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
}

void Streamer::fail_visit(const Failure &why) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!in_batch_ || failed_.load(std::memory_order_relaxed)) return;
    give_up(why);
}

void Streamer::give_up(Failure why) {
    failure_ = std::move(why);
    failed_.store(true, std::memory_order_release);
    changed_.notify_all();
}

void Streamer::set_cache_bytes(uint64_t bytes) {
    require_cache_bytes(bytes, cache_->min_bytes());
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_bytes_ = bytes;
    if (in_batch_) return;
    n_sleeping_++; // for reads ahead that a batch has left under way
    changed_.wait(lock, [this] { return n_in_flight_ == 0 || in_batch_; });
    n_sleeping_--;
    if (!in_batch_) apply_cache_bytes();
}

void Streamer::begin_graph() {
    std::lock_guard<std::mutex> lock(mutex_);
    apply_cache_bytes();
    find_whole();
}

void Streamer::apply_cache_bytes() {
    if (wanted_bytes_ == 0) return;
    forget_whole();
    rest_ = 0;
    if (cache_->set_bytes(wanted_bytes_)) wanted_bytes_ = 0;
}

StreamerStats Streamer::stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    StreamerStats s = stats_;
    s.n_evict = cache_->n_evict();
    s.n_read = reader_->n_read();
    s.read_bytes = reader_->read_bytes();
    s.drive_ns = drive_ns(now_ns());
    s.cache_bytes = cache_->bytes();
    s.n_slot = cache_->n_slot();
    s.n_slot_used = cache_->n_used();
    if (price_) {
        s.price_nats = price_->price();
        s.spent_nats = price_->spent();
    }
    s.direct_io = direct_io_;
    s.reader = reader_->kind();
    s.prefetch_paused = governor_.paused();
    s.prefetch_threshold = governor_.threshold();
    s.prefetch_depth = governor_.depth();
    s.with_ns = governor_.with_ns();
    s.without_ns = governor_.without_ns();
    s.with_bytes = governor_.with_bytes();
    s.without_bytes = governor_.without_bytes();
    return s;
}

uint32_t Streamer::n_cached(uint32_t layer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    uint32_t n = 0;
    for (uint8_t s : states_of(layer)) n += s & k_state_cached;
    return n;
}

std::vector<uint8_t> Streamer::expert_states(uint32_t layer) const {
    std::lock_guard<std::mutex> lock(mutex_);
    n_watched_ = k_watched;
    return states_of(layer);
}

std::vector<uint8_t> Streamer::states_of(uint32_t layer) const {
    if (layer >= layout_.layers.size()) return {};
    ExpertLayer const &spec = layout_.layers[layer];
    std::vector<uint8_t> states(spec.n_expert);
    SlotId id;
    for (uint32_t e = 0; e < spec.n_expert; e++) {
        states[e] = states_[spec.first + e];
        if (cache_->find(spec.first + e, &id) && cache_->at(id).ready == spec.all_matrices())
            states[e] |= k_state_cached;
    }
    return states;
}

std::vector<float> Streamer::rates() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return cache_->policy().rates();
}

void Streamer::warm_start(const std::vector<float> &rates) {
    std::lock_guard<std::mutex> lock(mutex_);
    cache_->policy().warm_start(rates);
}

void Streamer::trace_to(std::unique_ptr<Trace> trace) {
    std::lock_guard<std::mutex> lock(mutex_);
    trace_.swap(trace);
    asked_.clear();
    if (trace) trace->close();
}

// ---------------------------------------------------------------- reads

uint64_t Streamer::drive_ns(uint64_t now) const {
    return stats_.drive_ns + (n_in_flight_ != 0 ? now - drive_since_ns_ : 0);
}

bool Streamer::submit() {
    if (requests_.empty()) return true;
    uint64_t const now = now_ns();
    read_visit_ = visit_;
    if (n_in_flight_ == 0) drive_since_ns_ = now;
    n_in_flight_ += static_cast<uint32_t>(requests_.size());
    if (trace_)
        for (ReadRequest const &r : requests_) asked_[r.tag] = now;
    try {
        std::vector<Ended> const refused = reader_->submit(requests_.data(), requests_.size());
        requests_.clear();
        for (Ended const &e : refused) ended(e.tag, e.error);
        return refused.empty();
    } catch (...) { // for want of memory: none was taken
        std::string const why = caught().message;
        for (ReadRequest const &r : requests_) ended(r.tag, why);
        requests_.clear();
        return false;
    }
}

namespace {

// On any thread, by which nothing may be thrown.
Failure unread(const std::string &error) {
    try {
        return {EMOE_ERR_IO, "an expert could not be read: " + error};
    } catch (...) {
        return caught();
    }
}

} // namespace

// Reads of the pieces of an expert that bring any of these matrices and have not been asked for.
void Streamer::ask_pieces(SlotId id, ExpertIndex expert, uint32_t matrices, bool ahead) {
    ExpertLayer const &layer = layout_.layers[layer_of_[expert]];
    Place const &place = layer.places[expert - layer.first];
    for (uint32_t i = 0; i < place.n_piece; i++) {
        Piece const &piece = layer.pieces[place.first_piece + i];
        if ((piece.matrices & matrices) == 0 || (piece.matrices & cache_->at(id).asked) != 0) continue;
        cache_->ask(id, piece.matrices);
        ReadRequest r;
        r.file = files_[piece.file].get();
        r.offset = piece.offset;
        r.bytes = piece.bytes;
        r.need = piece.need;
        r.alignment = alignment_;
        r.dst = cache_->data(id) + piece.slot_offset;
        r.tag = slot_tag(id, piece.matrices, ahead);
        requests_.push_back(r);
        if (ahead) {
            stats_.prefetch_bytes += piece.bytes;
            return; // one at a time: what is needed meanwhile shall not wait long
        }
    }
}

void Streamer::on_read(uint64_t tag, const std::string &error) {
    std::lock_guard<std::mutex> lock(mutex_);
    ended(tag, error);
}

void Streamer::ended(uint64_t tag, const std::string &error) {
    uint64_t const now = --n_in_flight_ == 0 || trace_ ? now_ns() : 0;
    if (n_in_flight_ == 0) stats_.drive_ns += now - drive_since_ns_;
    bool const passing = (tag & k_streamed) != 0;
    SlotId const id = passing ? SlotId{} : tag_slot(tag);
    bool const ahead = !passing && tag_ahead(tag);
    if (trace_) trace_read(tag, now);
    // A read ahead that went wrong is nobody's failure yet: whoever needs the expert reads it again.
    bool const matters = !ahead || cache_->at(id).pinned;
    if (!error.empty() && matters && in_batch_ && !failed_.load(std::memory_order_relaxed)) give_up(unread(error));
    bool const on = error.empty() && !failed_.load(std::memory_order_relaxed);
    if (passing) {
        if (on) make_ready(static_cast<uint32_t>(tag & ~k_streamed));
    } else if (!error.empty()) {
        cache_->set_failed(id);
        if (ahead) rest_ = layout_.n_expert_total; // asked again and again, it would go wrong again and again
    } else {
        uint32_t const matrices = tag_matrices(tag);
        bool const pinned = cache_->at(id).pinned;
        cache_->arrived(id, matrices);
        if (on && pinned && layer_ != UINT32_MAX && (matrices >> matrix_ & 1) != 0)
            for (uint32_t i = 0; i < slots_.size(); i++) // at most a layer's experts; a read takes far longer
                if (!streamed_[i] && slots_[i] == id) make_ready(i);
    }
    if (on) pump();
    if (n_sleeping_ != 0) changed_.notify_all();
}

void Streamer::trace_read(uint64_t tag, uint64_t now) {
    auto const asked = asked_.find(tag);
    if (asked == asked_.end()) return;
    if (tag & k_streamed) {
        VisitExpert const &e = groups_.experts[tag & ~k_streamed];
        trace_->read(spec_->first + e.expert, static_cast<uint8_t>(1u << matrix_), false,
                     spec_->slice(e.expert, matrix_).bytes, asked->second, now);
    } else {
        ExpertIndex const expert = cache_->at(tag_slot(tag)).expert;
        ExpertLayer const &layer = layout_.layers[layer_of_[expert]];
        Place const &place = layer.places[expert - layer.first];
        for (uint32_t i = 0; i < place.n_piece; i++) {
            Piece const &piece = layer.pieces[place.first_piece + i];
            if (piece.matrices == tag_matrices(tag))
                trace_->read(expert, piece.matrices, tag_ahead(tag), piece.bytes, asked->second, now);
        }
    }
    asked_.erase(asked);
}

// ---------------------------------------------------------------- the visit

void Streamer::end_visit() {
    for (SlotId id : passage_) cache_->unpin(id);
    for (SlotId id : in_passage_)
        if (!id.none()) cache_->unpin(id);
    for (SlotId id : pinned_) cache_->unpin(id);
    passage_.clear();
    in_passage_.clear();
    pinned_.clear();
    queue_.clear();
    layer_ = UINT32_MAX;
    done_mask_ = 0;
}

void Streamer::begin_visit(uint32_t layer, const Routing &routing) {
    end_visit();
    if (n_batch_token_ == 1) governor_.at_layer(static_cast<uint32_t>(wishes_.size()), n_in_flight_ == 0);
    drop_wishes();
    if (n_whole_ == 0) apply_cache_bytes(); // else this graph reads slots without asking: between graphs
    layer_ = layer;
    visit_++;
    spec_ = &layout_.layers[layer];
    groups_.group(routing, spec_->n_expert, on_gpu_.empty() ? nullptr : on_gpu_.data() + spec_->first,
                  choose_skips(routing));
    uses_.clear();
    for (auto const *list : {&groups_.experts, &groups_.gpu_experts})
        for (VisitExpert const &e : *list) uses_.push_back(Use{spec_->first + e.expert, e.n_row, e.weight});
    stats_.n_gpu += groups_.gpu_experts.size();
    cache_->on_visit(layer, routing.n_token, uses_.data(), uses_.size());
    if (visit_ % k_rebalance == 0) cache_->rebalance();
    look_up(routing.n_token);
    count_skips(routing);
    look_ahead_due_ = true;
}

void Streamer::look_ahead(const Routing &routing) {
    if (!look_ahead_due_) return; // written by this thread alone, in begin_product
    look_ahead_due_ = false;
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed_.load(std::memory_order_relaxed)) return;
    // Where nothing had to be read lately there is nothing to read ahead: guessing would only cost.
    try {
        if (visit_ - read_visit_ <= k_quiet * layout_.layers.size()) {
            settle_ahead(routing.n_token);
            wish_ahead(routing);
        }
        wish_for_rest();
        pump();
    } catch (...) { // a guess less
        drop_wishes();
    }
}

// Pins what is here or on its way, takes slots for the rest and asks for all that is missing.
void Streamer::look_up(uint32_t n_token) {
    size_t const n = groups_.experts.size();
    uint32_t const all = spec_->all_matrices();
    slots_.assign(n, SlotId{});
    streamed_.assign(n, 0);
    in_passage_.assign(n, SlotId{});
    missing_.clear();
    streams_ = false;
    std::fill_n(states_.begin() + spec_->first, spec_->n_expert, uint8_t{0});
    if (trace_) trace_->visit(layer_, n_token, now_ns(), n);
    uint32_t wanted[k_max_class] = {};
    bool asks = false; // something is not here and not on its way
    for (uint32_t i = 0; i < n; i++) {
        ExpertIndex const e = spec_->first + groups_.experts[i].expert;
        bool const found = cache_->find(e, &slots_[i]);
        TraceState state = TraceState::miss;
        if (found) {
            ExpertCache::Slot const &s = cache_->at(slots_[i]);
            if (s.asked == all) state = s.ready == all ? TraceState::hit : TraceState::late;
            asks = asks || s.asked != all;
            if (s.speculative) stats_.n_prefetch_used++;
            states_[e] |= s.speculative ? k_state_prefetched : uint8_t{0};
            cache_->set_speculative(slots_[i], false);
            cache_->pin(slots_[i]);
        } else {
            asks = true;
            missing_.push_back(i);
            wanted[cache_->class_of(e)]++;
        }
        states_[e] |= k_state_used;
        (state == TraceState::miss ? stats_.n_miss : stats_.n_hit)++;
        if (state == TraceState::miss) states_[e] |= k_state_missed;
        if (state == TraceState::late) stats_.n_late++;
        if (trace_)
            trace_->use(static_cast<uint16_t>(groups_.experts[i].expert), groups_.experts[i].n_row,
                        groups_.experts[i].weight, state);
    }
    if (!cache_->fits(wanted)) {
        stream_visit();
    } else {
        // The largest first: what remains of their class is for the smaller ones.
        std::stable_sort(missing_.begin(), missing_.end(), [this](uint32_t a, uint32_t b) {
            return cache_->class_of(spec_->first + groups_.experts[a].expert) >
                   cache_->class_of(spec_->first + groups_.experts[b].expert);
        });
        for (uint32_t i : missing_) slots_[i] = cache_->take_for(spec_->first + groups_.experts[i].expert);
    }
    // In the order of need: the first product's matrices of all experts, then the second's, then the third's.
    for (uint32_t m = 0; m < spec_->matrices.size() && asks; m++)
        for (uint32_t i = 0; i < n; i++)
            if (!streamed_[i]) ask_pieces(slots_[i], spec_->first + groups_.experts[i].expert, 1u << m, false);
    submit();
    for (uint32_t i = 0; i < n; i++)
        if (!streamed_[i]) pinned_.push_back(slots_[i]);
}

// Hits stay, unless they leave too little room for the others to pass.
void Streamer::stream_visit() {
    uint32_t cls = 0;
    for (uint32_t i : missing_) cls = std::max(cls, cache_->class_of(spec_->first + groups_.experts[i].expert));
    uint32_t available = cache_->n_available(cls);
    for (auto i = static_cast<uint32_t>(groups_.experts.size()); i-- > 0 && available < k_min_passage;) {
        if (slots_[i].none() || slots_[i].cls < cls || cache_->at(slots_[i]).pending != 0) continue;
        cache_->unpin(slots_[i]);
        slots_[i] = SlotId{};
        missing_.push_back(i);
        available++;
    }
    streams_ = true;
    for (uint32_t i : missing_) streamed_[i] = 1;
    stats_.n_streamed += missing_.size();
    for (uint32_t i = std::min<uint32_t>(available, static_cast<uint32_t>(missing_.size())); i-- > 0;)
        passage_.push_back(cache_->take(cls));
}

bool Streamer::begin_product(uint32_t layer, uint32_t matrix, const Routing &routing) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed_.load(std::memory_order_relaxed)) return false;
    try {
        begin(layer, matrix, routing);
    } catch (...) {
        give_up(caught());
    }
    return !failed_.load(std::memory_order_relaxed);
}

void Streamer::begin(uint32_t layer, uint32_t matrix, const Routing &routing) {
    if (layer != layer_ || (done_mask_ >> matrix & 1) != 0) begin_visit(layer, routing);
    done_mask_ |= 1u << matrix;
    matrix_ = matrix;
    if (trace_) product_begin_ns_ = now_ns();
    weights_.assign(groups_.experts.size(), nullptr);
    ready_.assign(groups_.experts.size(), 0); // full length at once: others read it while it is filled
    n_ready_.store(0, std::memory_order_relaxed);
    queue_.clear();
    for (uint32_t i : groups_.by_rows) {
        if (streamed_[i])
            queue_.push_back(i);
        else if ((cache_->at(slots_[i]).ready >> matrix & 1) != 0)
            make_ready(i);
    }
    std::reverse(queue_.begin(), queue_.end());
    issue_streamed();
}

void Streamer::issue_streamed() {
    while (!queue_.empty() && !passage_.empty()) {
        uint32_t const i = queue_.back();
        queue_.pop_back();
        in_passage_[i] = passage_.back();
        passage_.pop_back();
        Slice const &s = spec_->slice(groups_.experts[i].expert, matrix_);
        Span const span = aligned_span(s, alignment_);
        ReadRequest r;
        r.file = files_[s.file].get();
        r.offset = span.offset;
        r.bytes = span.bytes;
        r.need = span.need;
        r.alignment = alignment_;
        r.dst = cache_->data(in_passage_[i]);
        r.tag = k_streamed | i;
        requests_.push_back(r);
    }
    submit();
}

const uint8_t *Streamer::at(const ExpertLayer &layer, uint32_t expert, uint32_t matrix, SlotId id) const {
    return cache_->data(id) + (cache_->at(id).packed ? layer.packed.at : layer.places[expert].at)[matrix];
}

void Streamer::make_ready(uint32_t index) {
    uint32_t const expert = groups_.experts[index].expert;
    weights_[index] = streamed_[index] ? cache_->data(in_passage_[index]) +
                                             aligned_span(spec_->slice(expert, matrix_), alignment_).skip
                                       : at(*spec_, expert, matrix_, slots_[index]);
    uint32_t const position = n_ready_.load(std::memory_order_relaxed);
    ready_[position] = index;
    n_ready_.store(position + 1, std::memory_order_release);
}

int32_t Streamer::wait_ready(uint32_t position) {
    reader_->poll();
    for (int i = 0; i < k_spin; i++) {
        if (n_ready_.load(std::memory_order_acquire) > position) return static_cast<int32_t>(ready_[position]);
        if (failed_.load(std::memory_order_acquire)) return -1;
    }
    uint64_t const begin = now_ns();
    std::unique_lock<std::mutex> lock(mutex_);
    n_sleeping_++;
    changed_.wait(lock, [&] {
        return n_ready_.load(std::memory_order_relaxed) > position || failed_.load(std::memory_order_relaxed);
    });
    n_sleeping_--;
    uint64_t const end = now_ns();
    stats_.stall_ns += end - begin;
    if (trace_) trace_->stall(layer_, matrix_, begin, end);
    if (n_ready_.load(std::memory_order_relaxed) <= position) return -1;
    return static_cast<int32_t>(ready_[position]);
}

void Streamer::release(uint32_t index) {
    if (!streamed_[index]) return;
    std::lock_guard<std::mutex> lock(mutex_);
    passage_.push_back(in_passage_[index]);
    in_passage_[index] = SlotId{};
    if (!failed_.load(std::memory_order_relaxed)) issue_streamed();
}

void Streamer::end_product() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (trace_) trace_->product(layer_, matrix_, product_begin_ns_, now_ns());
}

} // namespace emoe
