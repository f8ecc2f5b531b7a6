// Who is in memory: a fixed number of slots a size class, and the table from expert to slot.
//
// Experts of different layers may differ in size (a file that keeps some matrices at more bits); each size has a
// class of slots of its own, so that no slot is wasted on a smaller expert. Slots are one reserved range of memory:
// filling them causes no allocation, shrinking gives whole pages back. Not thread-safe: the streamer holds the lock.
#pragma once

#include "base/arena.h"
#include "cache/policy.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace emoe {

struct SlotClass {
    uint64_t slot_bytes = 0; // of one expert, alignment included
    uint32_t n_expert = 0;   // experts of this size: more slots are never needed
    uint32_t n_min = 0;      // slots without which one layer cannot be computed
};

struct SlotId {
    uint32_t cls = 0;
    uint32_t slot = 0;
};

// Throws EMOE_ERR_MEMORY, naming both, when bytes < least.
void require_cache_bytes(uint64_t bytes, uint64_t least);

class ExpertCache {
public:
    // class_of: class of each expert, by ExpertIndex.
    ExpertCache(std::vector<SlotClass> classes, std::vector<uint8_t> class_of, std::unique_ptr<EvictionPolicy> policy);

    uint64_t min_bytes() const;
    uint64_t max_bytes() const;

    // Divides the bytes among the classes in proportion to what they could use; each gets at least n_min.
    // Experts beyond the new limit are evicted and their memory given back. False, and nothing done, while one of
    // them is pinned or loading. Throws EMOE_ERR_MEMORY below min_bytes.
    bool set_bytes(uint64_t bytes);
    uint64_t bytes() const; // of the slots in force

    // Slot of an expert that is in the cache or on its way; false when it is neither.
    bool find(ExpertIndex expert, SlotId *id) const;
    void on_use(ExpertIndex expert) { policy_->on_use(expert, now_); }
    void tick() { now_++; } // one layer visit

    // Slots of a class that hold nothing or an expert that may be evicted.
    uint32_t n_available(uint32_t cls) const;
    // Takes n <= n_available slots, evicting the worst experts; they are pinned and hold no expert yet.
    void take(uint32_t cls, uint32_t n, std::vector<SlotId> *taken);
    // Declares what a taken slot is being filled with. n_pending: reads to come.
    void assign(SlotId id, ExpertIndex expert, uint32_t n_pending);
    // One of the reads has ended. ready: the matrix that it brought.
    void arrived(SlotId id, uint32_t matrix);
    void set_failed(SlotId id, uint32_t matrix);
    bool is_ready(SlotId id, uint32_t matrix) const { return (slot(id).ready >> matrix & 1) != 0; }
    bool is_failed(SlotId id) const { return slot(id).failed; }

    void pin(SlotId id) { slot(id).pinned = true; }
    // A slot that holds no expert, or one whose read failed, becomes free.
    void unpin(SlotId id);

    uint8_t *data(SlotId id) const;
    uint32_t class_of(ExpertIndex expert) const { return class_of_[expert]; }

    uint32_t n_slot() const;
    uint32_t n_used() const { return n_used_; }
    uint64_t n_evict() const { return n_evict_; }

private:
    struct Slot {
        ExpertIndex expert = k_no_expert;
        uint8_t pending = 0; // reads under way
        uint8_t ready = 0;   // bit m: matrix m is here
        bool pinned = false;
        bool failed = false;
    };
    struct Class {
        SlotClass spec;
        Arena arena;
        std::vector<Slot> slots;    // as many as there are experts; those from limit on are out of use
        std::vector<uint32_t> free; // unpinned slots below limit that hold nothing
        uint32_t limit = 0;
    };
    Slot &slot(SlotId id) { return classes_[id.cls].slots[id.slot]; }
    Slot const &slot(SlotId id) const { return classes_[id.cls].slots[id.slot]; }
    bool evictable(Slot const &s) const { return s.expert != k_no_expert && !s.pinned && s.pending == 0; }
    void forget(Slot &s);

    std::vector<Class> classes_;
    std::vector<uint8_t> class_of_;
    std::vector<int32_t> slot_of_; // by ExpertIndex, -1 when not in the cache
    std::unique_ptr<EvictionPolicy> policy_;
    std::vector<std::pair<double, uint32_t>> ranking_; // scratch of take()
    uint64_t now_ = 1;
    uint32_t n_used_ = 0;
    uint64_t n_evict_ = 0;
};

} // namespace emoe
