#include "pipeline/streamer.h"

#include "base/clock.h"
#include "base/error.h"

#include <algorithm>
#include <numeric>

namespace emoe {

namespace {

// A read's tag: what to do with its completion.
// Into the cache: class, slot, matrix. Passing through: k_streamed and the index in the visit.
constexpr uint64_t k_streamed = uint64_t{1} << 63;
uint64_t slot_tag(SlotId id, uint32_t matrix) { return uint64_t{id.cls} << 40 | uint64_t{id.slot} << 8 | matrix; }
SlotId tag_slot(uint64_t tag) { return SlotId{static_cast<uint32_t>(tag >> 40), static_cast<uint32_t>(tag >> 8)}; }
uint32_t tag_matrix(uint64_t tag) { return static_cast<uint32_t>(tag & 0xff); }

// Reads in passage at least, when a visit streams: two, so that one is read while the other is computed.
constexpr uint32_t k_min_passage = 2;

// Checks of an atomic before a thread sleeps: a few microseconds, less than a wake-up costs. More would take the
// core from the reader's threads.
constexpr int k_spin = 400;

void slot_classes(const Layout &layout, std::vector<SlotClass> *classes, std::vector<uint8_t> *class_of) {
    class_of->resize(layout.n_expert_total);
    for (ExpertLayer const &layer : layout.layers) {
        size_t c = 0;
        while (c < classes->size() && (*classes)[c].slot_bytes != layer.slot_bytes) c++;
        if (c == 256) fail(EMOE_ERR_UNSUPPORTED, "experts of more than 256 different sizes");
        if (c == classes->size()) classes->push_back(SlotClass{layer.slot_bytes, 0, 0});
        SlotClass &cls = (*classes)[c];
        cls.n_expert += layer.n_expert;
        uint32_t const least = std::max(layout.n_expert_used, 2 * k_min_passage);
        cls.n_min = std::max(cls.n_min, std::min(layer.n_expert, least));
        std::fill_n(class_of->begin() + layer.first, layer.n_expert, static_cast<uint8_t>(c));
    }
}

} // namespace

uint64_t slot_min_bytes(const Layout &layout) {
    std::vector<SlotClass> classes;
    std::vector<uint8_t> class_of;
    slot_classes(layout, &classes, &class_of);
    uint64_t sum = 0;
    for (SlotClass const &c : classes) sum += c.slot_bytes * c.n_min;
    return sum;
}

Streamer::Streamer(Layout layout, const Params &params) : layout_(std::move(layout)) {
    direct_io_ = true;
    alignment_ = 512;
    for (std::string const &path : layout_.paths) {
        files_.push_back(std::make_unique<File>(path, params.buffered));
        alignment_ = std::max(alignment_, files_.back()->alignment());
        direct_io_ = direct_io_ && files_.back()->direct();
    }
    place_regions(&layout_, alignment_);

    std::vector<SlotClass> classes;
    std::vector<uint8_t> class_of;
    slot_classes(layout_, &classes, &class_of);
    cache_ = std::make_unique<ExpertCache>(classes, class_of, make_policy(params.policy, layout_.n_expert_total));
    min_bytes_ = cache_->min_bytes();
    max_bytes_ = cache_->max_bytes();
    cache_->set_bytes(params.cache_bytes);
    uint32_t most = 0;
    for (ExpertLayer const &layer : layout_.layers) most = std::max(most, layer.n_expert);
    index_of_.assign(most, -1);
    ReaderParams reader = params.reader;
    if (!direct_io_) reader.kind = ReaderKind::threads; // a buffered file's pages are dropped after each pread
    reader_ = make_reader(reader, faults_, *this);
}

Streamer::~Streamer() = default;

void Streamer::begin_batch() {
    std::lock_guard<std::mutex> lock(mutex_);
    in_batch_ = true;
    failure_.clear();
    failed_.store(false, std::memory_order_release);
    apply_budget();
}

void Streamer::end_batch() {
    std::unique_lock<std::mutex> lock(mutex_);
    // After a failure reads may still be writing into slots; nothing may be given up under them.
    n_sleeping_++;
    changed_.wait(lock, [this] { return n_in_flight_ == 0 || !failed_.load(std::memory_order_relaxed); });
    n_sleeping_--;
    end_visit();
    in_batch_ = false;
    apply_budget();
}

std::string Streamer::failure() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return failure_;
}

void Streamer::fail_visit(const std::string &why) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!in_batch_ || failed_.load(std::memory_order_relaxed)) return;
    failure_ = why;
    failed_.store(true, std::memory_order_release);
    changed_.notify_all();
}

void Streamer::set_cache_bytes(uint64_t bytes) {
    require_cache_bytes(bytes, min_bytes_);
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_bytes_ = bytes;
    if (!in_batch_) apply_budget();
}

void Streamer::apply_budget() {
    if (wanted_bytes_ != 0 && cache_->set_bytes(wanted_bytes_)) wanted_bytes_ = 0;
}

StreamerStats Streamer::stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    StreamerStats s = stats_;
    s.n_evict = cache_->n_evict();
    s.n_read = reader_->n_read();
    s.read_bytes = reader_->read_bytes();
    s.cache_bytes = cache_->bytes();
    s.n_slot = cache_->n_slot();
    s.n_slot_used = cache_->n_used();
    s.direct_io = direct_io_;
    s.reader = reader_->kind();
    return s;
}

uint32_t Streamer::resident(uint32_t layer) const {
    if (layer >= layout_.layers.size()) return 0;
    std::lock_guard<std::mutex> lock(mutex_);
    ExpertLayer const &spec = layout_.layers[layer];
    uint32_t n = 0;
    SlotId id;
    for (uint32_t e = 0; e < spec.n_expert; e++) n += cache_->find(spec.first + e, &id) ? 1 : 0;
    return n;
}

// Collects the rows of each distinct expert: experts_ in order of first appearance, rows_ grouped.
void Streamer::group(const ExpertLayer &spec, const Routing &routing) {
    for (VisitExpert const &e : experts_) index_of_[e.expert] = -1;
    experts_.clear();
    for (uint32_t t = 0; t < routing.n_token; t++)
        for (uint32_t k = 0; k < routing.n_rank; k++) {
            auto const e = static_cast<uint32_t>(routing.at(t, k));
            if (e >= spec.n_expert) continue; // a token that routes nowhere (masked rank)
            if (index_of_[e] < 0) {
                index_of_[e] = static_cast<int32_t>(experts_.size());
                experts_.push_back(VisitExpert{e, 0, 0});
            }
            experts_[index_of_[e]].n_row++;
        }
    uint32_t first = 0;
    for (VisitExpert &e : experts_) {
        e.first_row = first;
        first += e.n_row;
        e.n_row = 0;
    }
    rows_.resize(first);
    for (uint32_t t = 0; t < routing.n_token; t++)
        for (uint32_t k = 0; k < routing.n_rank; k++) {
            auto const id = static_cast<uint32_t>(routing.at(t, k));
            if (id >= spec.n_expert) continue;
            VisitExpert &e = experts_[index_of_[id]];
            rows_[e.first_row + e.n_row++] = Row{t, k};
        }
    // Experts with many rows first, so that the threads that share them end together.
    by_rows_.resize(experts_.size());
    std::iota(by_rows_.begin(), by_rows_.end(), 0u);
    if (routing.n_token > 1)
        std::stable_sort(by_rows_.begin(), by_rows_.end(),
                         [this](uint32_t a, uint32_t b) { return experts_[a].n_row > experts_[b].n_row; });
}

void Streamer::end_visit() {
    for (SlotId id : passage_) cache_->unpin(id);
    for (SlotId id : in_passage_)
        if (id.slot != UINT32_MAX) cache_->unpin(id);
    for (SlotId id : pinned_) cache_->unpin(id);
    passage_.clear();
    in_passage_.clear();
    pinned_.clear();
    queue_.clear();
    layer_ = UINT32_MAX;
    done_mask_ = 0;
}

void Streamer::add_read(SlotId id, uint32_t expert, uint32_t matrix, uint64_t tag) {
    Slice const &s = spec_->slice(expert, matrix);
    Span const span = aligned_span(s, alignment_);
    ReadRequest r;
    r.file = files_[s.file].get();
    r.offset = span.offset;
    r.bytes = span.bytes;
    r.need = span.need;
    r.alignment = alignment_;
    r.dst = cache_->data(id) + spec_->matrices[matrix].slot_offset;
    r.tag = tag;
    requests_.push_back(r);
    n_in_flight_++;
}

void Streamer::begin_visit(uint32_t layer, const Routing &routing) {
    end_visit();
    apply_budget();
    layer_ = layer;
    visit_++;
    spec_ = &layout_.layers[layer];
    group(*spec_, routing);
    cache_->tick();

    size_t const n = experts_.size();
    slots_.assign(n, SlotId{});
    streamed_.assign(n, 0);
    in_passage_.assign(n, SlotId{0, UINT32_MAX});
    std::vector<uint32_t> missing;
    uint32_t n_hit = 0;
    for (uint32_t i = 0; i < n; i++) {
        ExpertIndex const e = spec_->first + experts_[i].expert;
        cache_->on_use(e);
        if (cache_->find(e, &slots_[i])) {
            cache_->pin(slots_[i]);
            n_hit++;
        } else {
            missing.push_back(i);
        }
    }
    stats_.n_hit += n_hit;
    stats_.n_miss += missing.size();

    uint32_t const cls = cache_->class_of(spec_->first);
    uint32_t available = cache_->n_available(cls);
    if (missing.size() > available) {
        // Streams. Hits stay, unless they leave too little room for the others to pass.
        for (uint32_t i = static_cast<uint32_t>(n); i-- > 0 && available < k_min_passage;) {
            if (std::find(missing.begin(), missing.end(), i) != missing.end()) continue;
            cache_->unpin(slots_[i]);
            missing.push_back(i);
            available++;
        }
        for (uint32_t i : missing) streamed_[i] = 1;
        stats_.n_streamed += missing.size();
        cache_->take(cls, std::min<uint32_t>(available, static_cast<uint32_t>(missing.size())), &passage_);
    } else {
        std::vector<SlotId> taken;
        cache_->take(cls, static_cast<uint32_t>(missing.size()), &taken);
        auto const n_matrix = static_cast<uint32_t>(spec_->matrices.size());
        for (size_t j = 0; j < missing.size(); j++) {
            slots_[missing[j]] = taken[j];
            cache_->assign(taken[j], spec_->first + experts_[missing[j]].expert, n_matrix);
        }
        // In the order of need: the first product's matrices of all experts, then the second's, then the third's.
        requests_.clear();
        for (uint32_t m = 0; m < n_matrix; m++)
            for (size_t j = 0; j < missing.size(); j++)
                add_read(taken[j], experts_[missing[j]].expert, m, slot_tag(taken[j], m));
        reader_->submit(requests_.data(), requests_.size());
    }
    for (uint32_t i = 0; i < n; i++)
        if (!streamed_[i]) pinned_.push_back(slots_[i]);
}

bool Streamer::begin_product(uint32_t layer, uint32_t matrix, const Routing &routing) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed_.load(std::memory_order_relaxed)) return false;
    if (layer != layer_ || (done_mask_ >> matrix & 1) != 0) begin_visit(layer, routing);
    done_mask_ |= 1u << matrix;
    matrix_ = matrix;
    weights_.assign(experts_.size(), nullptr);
    ready_.assign(experts_.size(), 0); // full length at once: others read it while it is filled
    n_ready_.store(0, std::memory_order_relaxed);
    queue_.clear();
    for (uint32_t i : by_rows_) {
        if (streamed_[i])
            queue_.push_back(i);
        else if (cache_->is_ready(slots_[i], matrix))
            make_ready(i);
    }
    std::reverse(queue_.begin(), queue_.end());
    issue_streamed();
    return true;
}

void Streamer::issue_streamed() {
    requests_.clear();
    while (!queue_.empty() && !passage_.empty()) {
        uint32_t const i = queue_.back();
        queue_.pop_back();
        in_passage_[i] = passage_.back();
        passage_.pop_back();
        add_read(in_passage_[i], experts_[i].expert, matrix_, k_streamed | i);
    }
    reader_->submit(requests_.data(), requests_.size());
}

void Streamer::make_ready(uint32_t index) {
    SlotId const id = streamed_[index] ? in_passage_[index] : slots_[index];
    Slice const &s = spec_->slice(experts_[index].expert, matrix_);
    weights_[index] = cache_->data(id) + spec_->matrices[matrix_].slot_offset + aligned_span(s, alignment_).skip;
    uint32_t const position = n_ready_.load(std::memory_order_relaxed);
    ready_[position] = index;
    n_ready_.store(position + 1, std::memory_order_release);
}

void Streamer::on_read(uint64_t tag, const std::string &error) {
    std::lock_guard<std::mutex> lock(mutex_);
    n_in_flight_--;
    if (!error.empty() && !failed_.load(std::memory_order_relaxed)) {
        failure_ = error;
        failed_.store(true, std::memory_order_release);
    }
    if (tag & k_streamed) {
        if (error.empty() && !failed_.load(std::memory_order_relaxed))
            make_ready(static_cast<uint32_t>(tag & ~k_streamed));
    } else {
        SlotId const id = tag_slot(tag);
        uint32_t const m = tag_matrix(tag);
        if (error.empty())
            cache_->arrived(id, m);
        else
            cache_->set_failed(id, m);
        if (error.empty() && m == matrix_ && layer_ != UINT32_MAX && !failed_.load(std::memory_order_relaxed))
            for (uint32_t i = 0; i < experts_.size(); i++) // at most a layer's experts; a read takes far longer
                if (!streamed_[i] && slots_[i].cls == id.cls && slots_[i].slot == id.slot) make_ready(i);
    }
    if (n_sleeping_ != 0) changed_.notify_all();
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
    stats_.stall_ns += now_ns() - begin;
    if (n_ready_.load(std::memory_order_relaxed) <= position) return -1;
    return static_cast<int32_t>(ready_[position]);
}

void Streamer::release(uint32_t index) {
    if (!streamed_[index]) return;
    std::lock_guard<std::mutex> lock(mutex_);
    passage_.push_back(in_passage_[index]);
    in_passage_[index] = SlotId{0, UINT32_MAX};
    if (!failed_.load(std::memory_order_relaxed)) issue_streamed();
}

} // namespace emoe
