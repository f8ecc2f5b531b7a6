#include "cache/cache.h"

#include "base/error.h"

#include <algorithm>
#include <cassert>

namespace emoe {

void require_cache_bytes(uint64_t bytes, uint64_t least) {
    if (bytes < least)
        fail(EMOE_ERR_MEMORY, "an expert cache of %llu bytes is too small: it needs %llu",
             static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(least));
}

ExpertCache::ExpertCache(std::vector<SlotClass> classes, std::vector<uint8_t> class_of,
                         std::unique_ptr<EvictionPolicy> policy)
    : class_of_(std::move(class_of)), slot_of_(class_of_.size(), -1), policy_(std::move(policy)) {
    for (SlotClass const &spec : classes) {
        Class c;
        c.spec = spec;
        c.arena = Arena(spec.slot_bytes * spec.n_expert);
        c.slots.resize(spec.n_expert);
        classes_.push_back(std::move(c));
    }
}

uint64_t ExpertCache::min_bytes() const {
    uint64_t sum = 0;
    for (Class const &c : classes_) sum += c.spec.slot_bytes * c.spec.n_min;
    return sum;
}

uint64_t ExpertCache::max_bytes() const {
    uint64_t sum = 0;
    for (Class const &c : classes_) sum += c.spec.slot_bytes * c.spec.n_expert;
    return sum;
}

uint64_t ExpertCache::bytes() const {
    uint64_t sum = 0;
    for (Class const &c : classes_) sum += c.spec.slot_bytes * c.limit;
    return sum;
}

bool ExpertCache::set_bytes(uint64_t bytes) {
    uint64_t const least = min_bytes();
    uint64_t const most = max_bytes();
    require_cache_bytes(bytes, least);
    double const share =
        most == least ? 1.0 : static_cast<double>(std::min(bytes, most) - least) / static_cast<double>(most - least);
    std::vector<uint32_t> limits;
    for (Class const &c : classes_) {
        auto const more = static_cast<uint32_t>(share * (c.spec.n_expert - c.spec.n_min));
        limits.push_back(c.spec.n_min + more);
    }
    for (size_t i = 0; i < classes_.size(); i++)
        for (uint32_t s = limits[i]; s < classes_[i].limit; s++)
            if (classes_[i].slots[s].pinned || classes_[i].slots[s].pending != 0) return false;
    for (size_t i = 0; i < classes_.size(); i++) {
        Class &c = classes_[i];
        for (uint32_t s = limits[i]; s < c.limit; s++)
            if (c.slots[s].expert != k_no_expert) {
                forget(c.slots[s]);
                n_evict_++;
            }
        c.arena.release(limits[i] * c.spec.slot_bytes, c.arena.size());
        c.limit = limits[i];
        c.free.clear();
        for (uint32_t s = c.limit; s-- > 0;) // lowest slots first out: memory fills from the bottom
            if (c.slots[s].expert == k_no_expert && !c.slots[s].pinned) c.free.push_back(s);
    }
    return true;
}

bool ExpertCache::find(ExpertIndex expert, SlotId *id) const {
    if (slot_of_[expert] < 0) return false;
    *id = SlotId{class_of_[expert], static_cast<uint32_t>(slot_of_[expert])};
    return true;
}

uint32_t ExpertCache::n_available(uint32_t cls) const {
    Class const &c = classes_[cls];
    auto n = static_cast<uint32_t>(c.free.size());
    for (uint32_t s = 0; s < c.limit; s++) n += evictable(c.slots[s]) ? 1 : 0;
    return n;
}

void ExpertCache::take(uint32_t cls, uint32_t n, std::vector<SlotId> *taken) {
    Class &c = classes_[cls];
    if (n > c.free.size()) {
        size_t const n_victim = n - c.free.size();
        ranking_.clear();
        for (uint32_t s = 0; s < c.limit; s++)
            if (evictable(c.slots[s])) ranking_.emplace_back(policy_->badness(c.slots[s].expert, now_), s);
        assert(ranking_.size() >= n_victim);
        std::nth_element(ranking_.begin(), ranking_.begin() + static_cast<ptrdiff_t>(n_victim) - 1, ranking_.end(),
                         [](auto const &a, auto const &b) { return a.first > b.first; });
        for (size_t i = 0; i < n_victim; i++) {
            forget(c.slots[ranking_[i].second]);
            n_evict_++;
            c.free.push_back(ranking_[i].second);
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t const s = c.free.back();
        c.free.pop_back();
        c.slots[s].pinned = true;
        taken->push_back(SlotId{cls, s});
    }
}

void ExpertCache::assign(SlotId id, ExpertIndex expert, uint32_t n_pending) {
    Slot &s = slot(id);
    s.expert = expert;
    s.pending = static_cast<uint8_t>(n_pending);
    s.ready = 0;
    s.failed = false;
    slot_of_[expert] = static_cast<int32_t>(id.slot);
    n_used_++;
}

void ExpertCache::arrived(SlotId id, uint32_t matrix) {
    Slot &s = slot(id);
    s.pending--;
    s.ready = static_cast<uint8_t>(s.ready | 1u << matrix);
}

void ExpertCache::set_failed(SlotId id, uint32_t) {
    Slot &s = slot(id);
    s.pending--;
    s.failed = true;
}

void ExpertCache::unpin(SlotId id) {
    Slot &s = slot(id);
    s.pinned = false;
    if (s.failed) forget(s);
    if (s.expert == k_no_expert) classes_[id.cls].free.push_back(id.slot);
}

void ExpertCache::forget(Slot &s) {
    slot_of_[s.expert] = -1;
    s.expert = k_no_expert;
    s.ready = 0;
    s.failed = false;
    n_used_--;
}

uint8_t *ExpertCache::data(SlotId id) const {
    Class const &c = classes_[id.cls];
    return c.arena.data() + id.slot * c.spec.slot_bytes;
}

uint32_t ExpertCache::n_slot() const {
    uint32_t n = 0;
    for (Class const &c : classes_) n += c.limit;
    return n;
}

} // namespace emoe
