#include "cache/cache.h"

#include "base/error.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

namespace emoe {

namespace {
// Victims ranked at once: more than a visit needs as a rule.
constexpr size_t k_rank = 64;
// Below so many times the least, a cache of several sizes has one size of slot.
constexpr uint64_t k_few = 4;
// An expert expected within a few visits is worse to lose than any that is only likely.
constexpr double k_expected = -1e9;
} // namespace

void require_cache_bytes(uint64_t bytes, uint64_t least) {
    if (bytes < least)
        fail(EMOE_ERR_MEMORY, "an expert cache of %llu bytes is too small: it needs %llu",
             static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(least));
}

ExpertCache::ExpertCache(SlotClasses classes, std::unique_ptr<EvictionPolicy> policy)
    : classes_spec_(std::move(classes)), slot_of_(classes_spec_.class_of.size()),
      expected_by_(classes_spec_.class_of.size(), 0), policy_(std::move(policy)) {
    for (SlotClass const &spec : classes_spec_.classes) {
        Class c;
        c.spec = spec;
        bool const largest = classes_.size() + 1 == classes_spec_.classes.size();
        auto const most = largest ? static_cast<uint32_t>(classes_spec_.class_of.size()) : spec.n_expert;
        c.arena = Arena::reserved(spec.slot_bytes * most);
        c.slots.resize(most);
        classes_.push_back(std::move(c));
    }
    std::vector<uint32_t> n_home(classes_.size(), 0);
    for (uint8_t const cls : classes_spec_.class_of) home_.push_back(n_home[cls]++);
}

uint64_t ExpertCache::bytes() const {
    uint64_t sum = 0;
    for (Class const &c : classes_) sum += c.spec.slot_bytes * c.limit;
    return sum;
}

void ExpertCache::set_limit(Class &c, uint32_t limit) {
    for (uint32_t s = limit; s < c.limit; s++)
        if (c.slots[s].expert != k_no_expert) {
            forget(c.slots[s], SlotId{index_of(c), s});
            n_evict_++;
        }
    c.arena.keep(limit * c.spec.slot_bytes);
    c.limit = limit;
    c.free.clear();
    c.victims.clear();
    for (uint32_t s = c.limit; s-- > 0;) // lowest slots first out: memory fills from the bottom
        if (c.slots[s].expert == k_no_expert && !c.slots[s].pinned) c.free.push_back(s);
}

bool ExpertCache::set_bytes(uint64_t bytes) {
    uint64_t const least = min_bytes();
    uint64_t const most = max_bytes();
    require_cache_bytes(bytes, least);
    double const share =
        most == least ? 1.0 : static_cast<double>(std::min(bytes, most) - least) / static_cast<double>(most - least);
    // Few slots serve best when any expert fits into any of them: then all are of the largest class.
    bool const few = classes_.size() > 1 && bytes < k_few * least && bytes < most;
    std::vector<uint32_t> limits;
    for (Class const &c : classes_) {
        uint32_t const n_most = std::max(c.spec.n_expert, c.spec.n_min);
        auto n = c.spec.n_min + static_cast<uint32_t>(share * (n_most - c.spec.n_min));
        if (few) n = &c == &classes_.back() ? static_cast<uint32_t>(bytes / c.spec.slot_bytes) : 0;
        limits.push_back(std::min(n, static_cast<uint32_t>(c.slots.size())));
    }
    for (size_t i = 0; i < classes_.size(); i++)
        for (uint32_t s = limits[i]; s < classes_[i].limit; s++)
            if (classes_[i].slots[s].pinned || classes_[i].slots[s].pending != 0) return false;
    for (size_t i = 0; i < classes_.size(); i++) set_limit(classes_[i], limits[i]);
    return true;
}

// Classes compete by the badness of what they give up: where the given-up experts would have been needed sooner
// (lower badness), a slot is worth more. The slot that goes is the last of its class; its expert moves to the place
// of the class's worst.
void ExpertCache::rebalance() {
    if (classes_.size() < 2) return;
    Class *poor = nullptr, *rich = nullptr;
    for (Class &c : classes_) {
        bool const full = c.free.empty() && c.limit > 0;
        if (c.limit < c.spec.n_expert && c.given_up != 0 && (!poor || c.given_up < poor->given_up)) poor = &c;
        double const worst = full ? c.given_up : 1e18; // what is empty is no loss
        if (c.limit > c.spec.n_min && (!rich || worst > (rich->free.empty() ? rich->given_up : 1e18))) rich = &c;
    }
    if (!poor || !rich || poor == rich) return;
    if (rich->free.empty() && rich->given_up < 1.25 * poor->given_up) return;
    // As many slots of rich as one of poor takes.
    uint64_t const need = poor->spec.slot_bytes;
    auto const n = static_cast<uint32_t>((need + rich->spec.slot_bytes - 1) / rich->spec.slot_bytes);
    if (rich->limit < rich->spec.n_min + n) return;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t const last = rich->limit - 1;
        Slot &s = rich->slots[last];
        if (s.pinned || s.pending != 0) return;
        if (s.expert != k_no_expert) {
            rank(*rich);
            if (!rich->victims.empty() && rich->victims.back().slot != last) {
                Slot &to = rich->slots[rich->victims.back().slot];
                uint32_t const place = rich->victims.back().slot;
                forget(to, SlotId{index_of(*rich), place});
                n_evict_++;
                memcpy(rich->arena.data() + place * rich->spec.slot_bytes,
                       rich->arena.data() + last * rich->spec.slot_bytes, rich->spec.slot_bytes);
                to = s;
                slot_of_[to.expert].slot = place;
                s = Slot{};
            }
        }
        set_limit(*rich, last);
    }
    auto const more = std::max<uint64_t>(1, n * rich->spec.slot_bytes / need);
    set_limit(*poor, std::min(static_cast<uint32_t>(poor->slots.size()), poor->limit + static_cast<uint32_t>(more)));
}

bool ExpertCache::find(ExpertIndex expert, SlotId *id) const {
    if (slot_of_[expert].none()) return false;
    *id = slot_of_[expert];
    return true;
}

void ExpertCache::on_visit(uint32_t layer, uint32_t n_token, const Use *uses, size_t n_use) {
    now_++;
    policy_->on_visit(layer, n_token, uses, n_use);
}

void ExpertCache::expect(ExpertIndex expert, uint32_t n_visit) { expected_by_[expert] = now_ + n_visit; }

double ExpertCache::badness(ExpertIndex expert) const {
    if (expected_by_[expert] > now_) return k_expected + static_cast<double>(expected_by_[expert] - now_);
    return policy_->badness(expert);
}

bool ExpertCache::fits(const uint32_t (&n)[k_max_class]) const {
    uint64_t const total = std::accumulate(std::begin(n), std::end(n), uint64_t{0});
    uint64_t wanted = 0, available = 0; // of this class and larger
    for (size_t c = classes_.size(); c-- > 0;) {
        wanted += n[c];
        available += classes_[c].free.size();
        for (uint32_t s = 0; s < classes_[c].limit && available < total; s++)
            available += evictable(classes_[c].slots[s]) ? 1 : 0;
        if (wanted > available) return false;
    }
    return true;
}

uint32_t ExpertCache::n_available(uint32_t cls) const {
    size_t n = 0;
    for (size_t c = cls; c < classes_.size(); c++) {
        n += classes_[c].free.size();
        for (uint32_t s = 0; s < classes_[c].limit; s++) n += evictable(classes_[c].slots[s]) ? 1 : 0;
    }
    return static_cast<uint32_t>(n);
}

void ExpertCache::rank(Class &c) {
    c.victims_of = now_;
    c.victims.clear();
    for (uint32_t s = 0; s < c.limit; s++)
        if (evictable(c.slots[s])) c.victims.push_back(Victim{badness(c.slots[s].expert), s, c.slots[s].expert});
    auto const worse = [](Victim const &a, Victim const &b) { return a.badness > b.badness; };
    if (c.victims.size() > k_rank) {
        std::nth_element(c.victims.begin(), c.victims.begin() + k_rank, c.victims.end(), worse);
        c.victims.resize(k_rank);
    }
    std::sort(c.victims.begin(), c.victims.end(),
              [](Victim const &a, Victim const &b) { return a.badness < b.badness; });
}

bool ExpertCache::evict(Class &c, uint32_t cls, bool gently, SlotId *id) {
    for (int round = 0; round < 2; round++) {
        if (round == 1 || c.victims_of != now_) rank(c);
        while (!c.victims.empty()) {
            Victim const v = c.victims.back();
            c.victims.pop_back();
            if (gently && expected_by_[v.expert] > now_) continue; // maybe since it was ranked
            Slot &s = c.slots[v.slot];
            if (s.expert != v.expert || !evictable(s)) continue; // since it was ranked
            forget(s, SlotId{cls, v.slot});
            n_evict_++;
            c.given_up += 0.05 * (std::max(0.0, v.badness) - c.given_up);
            s.pinned = true;
            *id = SlotId{cls, v.slot};
            return true;
        }
    }
    return false;
}

SlotId ExpertCache::take(uint32_t cls, bool gently) {
    for (uint32_t k = cls; k < classes_.size(); k++) {
        Class &c = classes_[k];
        SlotId id;
        if (!c.free.empty()) {
            id = SlotId{k, c.free.back()};
            c.free.pop_back();
            slot(id).pinned = true;
            return id;
        }
        if (evict(c, k, gently, &id)) return id;
        if (gently) break;
    }
    return SlotId{};
}

SlotId ExpertCache::take_for(ExpertIndex expert, bool gently) {
    SlotId id = home(expert);
    std::vector<uint32_t> &free = classes_[id.cls].free;
    auto const at = holds_all() ? std::find(free.begin(), free.end(), id.slot) : free.end();
    if (at != free.end()) {
        free.erase(at);
        slot(id).pinned = true;
    } else {
        id = take(id.cls, gently);
    }
    if (!id.none()) assign(id, expert);
    return id;
}

bool ExpertCache::holds_all() const {
    return std::all_of(classes_.begin(), classes_.end(), [](Class const &c) { return c.limit >= c.spec.n_expert; });
}

bool ExpertCache::bring_home(ExpertIndex expert) {
    SlotId const from = slot_of_[expert], to = home(expert);
    if (from.none() || to.slot >= classes_[to.cls].limit) return false;
    if (from == to) return true;
    Slot &mine = slot(from), &other = slot(to);
    bool const is_free = other.expert == k_no_expert && !other.pinned;
    if (!idle(mine) || (!is_free && !idle(other))) return false;
    uint64_t const bytes =
        slot_bytes(to.cls); // no larger than the other: whoever lies there has room where this one was
    if (is_free) {
        memcpy(data(to), data(from), bytes);
        std::vector<uint32_t> &free = classes_[to.cls].free;
        free.erase(std::find(free.begin(), free.end(), to.slot));
        classes_[from.cls].free.push_back(from.slot);
    } else {
        std::swap_ranges(data(from), data(from) + bytes, data(to));
        slot_of_[other.expert] = from;
    }
    slot_of_[expert] = to;
    std::swap(mine, other);
    return true;
}

void ExpertCache::assign(SlotId id, ExpertIndex expert) {
    Slot &s = slot(id);
    bool const pinned = s.pinned;
    s = Slot{};
    s.pinned = pinned;
    s.expert = expert;
    slot_of_[expert] = id;
    n_used_++;
}

void ExpertCache::ask(SlotId id, uint32_t matrices) {
    Slot &s = slot(id);
    s.asked = static_cast<uint8_t>(s.asked | matrices);
    s.pending++;
}

void ExpertCache::arrived(SlotId id, uint32_t matrices) {
    Slot &s = slot(id);
    s.pending--;
    s.ready = static_cast<uint8_t>(s.ready | matrices);
    settle(id);
}

void ExpertCache::set_failed(SlotId id) {
    Slot &s = slot(id);
    s.pending--;
    s.failed = true;
    detach(s, id);
    settle(id);
}

void ExpertCache::abandon(SlotId id) {
    slot(id).abandoned = true;
    detach(slot(id), id);
    settle(id);
}

void ExpertCache::unpin(SlotId id) {
    slot(id).pinned = false;
    if (slot(id).expert == k_no_expert)
        classes_[id.cls].free.push_back(id.slot);
    else
        settle(id);
}

void ExpertCache::settle(SlotId id) {
    Slot &s = slot(id);
    if (s.pinned || s.pending != 0 || s.expert == k_no_expert || (!s.failed && !s.abandoned)) return;
    forget(s, id);
    classes_[id.cls].free.push_back(id.slot);
}

// Nobody finds the expert here any more; reads may still be writing.
void ExpertCache::detach(Slot const &s, SlotId id) {
    if (s.expert != k_no_expert && slot_of_[s.expert] == id) slot_of_[s.expert] = SlotId{};
}

void ExpertCache::forget(Slot &s, SlotId id) {
    detach(s, id);
    s = Slot{};
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
