// Who is in memory: a fixed number of slots a size class, and the table from expert to slot.
//
// Slots are one reserved range of memory a class: filling them causes no allocation, shrinking gives whole pages
// back. An expert lies in a slot of its class or of a larger one. Not thread-safe: the streamer holds the lock.
#pragma once

#include "base/arena.h"
#include "cache/classes.h"
#include "cache/policy.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace emoe {

struct SlotId {
    uint32_t cls = 0;
    uint32_t slot = UINT32_MAX;
    bool none() const { return slot == UINT32_MAX; }
    bool operator==(SlotId o) const { return cls == o.cls && slot == o.slot; }
};

// Throws EMOE_ERR_MEMORY, naming both, when bytes < least.
void require_cache_bytes(uint64_t bytes, uint64_t least);

class ExpertCache {
public:
    struct Slot {
        ExpertIndex expert = k_no_expert;
        uint8_t pending = 0;      // reads under way
        uint8_t asked = 0;        // bit m: matrix m is here or being read
        uint8_t ready = 0;        // bit m: matrix m is here
        bool pinned = false;      // by the visit under way
        bool failed = false;      // a read of it went wrong
        bool abandoned = false;   // freed when the reads under way have ended
        bool speculative = false; // read ahead, not used yet
        bool kept = false;        // its layer is whole in memory and used as such: never evicted
        bool packed = false;      // lies as PackedPlace says
    };

    ExpertCache(SlotClasses classes, std::unique_ptr<EvictionPolicy> policy);

    uint64_t min_bytes() const { return classes_spec_.min_bytes(); }
    uint64_t max_bytes() const { return classes_spec_.max_bytes(); }

    // Divides the bytes among the classes in proportion to what they could use; each gets at least n_min.
    // Experts beyond the new limit are evicted and their memory given back. False, and nothing done, while one of
    // them is pinned or loading. Throws EMOE_ERR_MEMORY below min_bytes.
    bool set_bytes(uint64_t bytes);
    uint64_t bytes() const; // of the slots in force
    // Moves slots from the class that holds the least useful experts to the one that gives up the most useful ones.
    // At most one step; cheap enough to be called now and then.
    void rebalance();

    // Slot of an expert that is in the cache or on its way; false when it is neither.
    bool find(ExpertIndex expert, SlotId *id) const;
    // A layer visit: tells the policy.
    void on_visit(uint32_t layer, uint32_t n_token, const Use *uses, size_t n_use);
    // The expert will probably be used within n_visit visits: it is given up last until then.
    void expect(ExpertIndex expert, uint32_t n_visit);

    // True when slots can be had for n[c] more experts of each class c.
    bool fits(const uint32_t (&n)[k_max_class]) const;
    // Slots of class cls or larger that hold nothing or an expert that may be evicted.
    uint32_t n_available(uint32_t cls) const;
    // Whether `take` would evict nothing.
    bool has_free(uint32_t cls) const { return !classes_[cls].free.empty(); }
    // Takes a slot for an expert of class cls, evicting if it must; pinned, holding no expert yet. None: all are in
    // use. gently: nothing that is expected soon is evicted.
    SlotId take(uint32_t cls, bool gently = false);
    // The same for one expert, which holds it from then on. Where every expert has a slot it is its home.
    SlotId take_for(ExpertIndex expert, bool gently = false);
    // A read of these matrices begins; ended, well or not.
    void ask(SlotId id, uint32_t matrices);
    void arrived(SlotId id, uint32_t matrices);
    void set_failed(SlotId id);
    // Frees the slot, now or when its reads have ended.
    void abandon(SlotId id);

    Slot const &at(SlotId id) const { return classes_[id.cls].slots[id.slot]; }
    void set_speculative(SlotId id, bool on) { slot(id).speculative = on; }
    void pin(SlotId id) { slot(id).pinned = true; }
    // A slot that holds no expert, or one whose read failed, becomes free.
    void unpin(SlotId id);

    // Every expert has a slot of its class.
    bool holds_all() const;
    // Experts of a class in their order have its slots in their order.
    SlotId home(ExpertIndex expert) const { return SlotId{classes_spec_.class_of[expert], home_[expert]}; }
    // Brings an expert that is here to its home, where one may have been put that lies where this one was until then.
    // False when either is pinned or loading, or the home is not in use.
    bool bring_home(ExpertIndex expert);
    void set_kept(SlotId id, bool on) { slot(id).kept = on; }
    void set_packed(SlotId id) { slot(id).packed = true; }

    uint8_t *data(SlotId id) const;
    uint64_t slot_bytes(uint32_t cls) const { return classes_[cls].spec.slot_bytes; }
    uint32_t class_of(ExpertIndex expert) const { return classes_spec_.class_of[expert]; }

    uint32_t n_slot() const;
    uint32_t n_used() const { return n_used_; }
    uint64_t n_evict() const { return n_evict_; }
    EvictionPolicy &policy() const { return *policy_; }

private:
    struct Victim {
        double badness;
        uint32_t slot;
        ExpertIndex expert; // in it when ranked
    };
    struct Class {
        SlotClass spec;
        Arena arena;
        std::vector<Slot> slots;     // as many as could ever be used; those from limit on are out of use
        std::vector<uint32_t> free;  // unpinned slots below limit that hold nothing
        std::vector<Victim> victims; // the worst last; of visit victims_of
        uint64_t victims_of = 0;
        uint32_t limit = 0;
        double given_up = 0; // mean badness of what was evicted lately
    };
    Slot &slot(SlotId id) { return classes_[id.cls].slots[id.slot]; }
    bool idle(Slot const &s) const { return s.expert != k_no_expert && !s.pinned && s.pending == 0; }
    bool evictable(Slot const &s) const { return idle(s) && !s.kept; }
    void assign(SlotId id, ExpertIndex expert);
    double badness(ExpertIndex expert) const;
    void rank(Class &c);
    bool evict(Class &c, uint32_t cls, bool gently, SlotId *id);
    uint32_t index_of(const Class &c) const { return static_cast<uint32_t>(&c - classes_.data()); }
    void detach(Slot const &s, SlotId id);
    void forget(Slot &s, SlotId id);
    void settle(SlotId id); // after a read ended or a pin went
    void set_limit(Class &c, uint32_t limit);

    SlotClasses classes_spec_;
    std::vector<Class> classes_;
    std::vector<uint32_t> home_;        // by ExpertIndex: a slot of its class
    std::vector<SlotId> slot_of_;       // by ExpertIndex, none() when not in the cache
    std::vector<uint64_t> expected_by_; // by ExpertIndex: visit until which it is expected
    std::unique_ptr<EvictionPolicy> policy_;
    uint64_t now_ = 1; // visits
    uint32_t n_used_ = 0;
    uint64_t n_evict_ = 0;
};

} // namespace emoe
