// Sizes of slots. Experts of about one size share a class; an expert may lie in a slot of its class or of a larger one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emoe {

struct SlotClass {
    uint64_t slot_bytes = 0; // of one slot
    uint32_t n_expert = 0;   // experts of this class: more slots are never needed
    uint32_t n_min = 0;      // slots without which some layer cannot be computed
};
constexpr size_t k_max_class = 8;

struct SlotClasses {
    std::vector<SlotClass> classes; // by ascending size
    std::vector<uint8_t> class_of;  // by ExpertIndex

    uint64_t min_bytes() const {
        uint64_t sum = 0;
        for (SlotClass const &c : classes) sum += c.slot_bytes * c.n_min;
        return sum;
    }
    // Every expert in a slot of its own class.
    uint64_t max_bytes() const {
        uint64_t sum = 0;
        for (SlotClass const &c : classes) sum += c.slot_bytes * (c.n_expert > c.n_min ? c.n_expert : c.n_min);
        return sum;
    }
};

} // namespace emoe
