// A small cache of the rows of one table, each of the same size: sets of eight, in each of which the row that was used
// least recently gives way. No row is ever looked for in more than one set, so a million of them cost what ten do.
#pragma once

#include "base/arena.h"

#include <array>
#include <cstdint>
#include <vector>

namespace emoe {

class RowCache {
public:
    // bytes: all that it may take, its notes included; at least one set is made of them. Memory is taken as it fills.
    RowCache(uint64_t bytes, uint32_t row_bytes, uint64_t n_row);

    // The bytes of a row that is here, valid until the next insert; null when it is not.
    const uint8_t *find(uint32_t row);
    // A place for a row that is not here, to be filled at once.
    uint8_t *insert(uint32_t row);

    uint64_t n_slot() const { return sets_.size() * k_ways; }
    // f(row, bytes) of each row that is here.
    template <typename F>
    void each(F &&f) const {
        for (size_t s = 0; s < sets_.size(); s++)
            for (uint32_t i = 0; i < k_ways && sets_[s].row[i] != k_none; i++) f(sets_[s].row[i], data(s, i));
    }

private:
    static constexpr uint32_t k_ways = 8, k_none = UINT32_MAX;
    struct Set { // the most recently used first
        std::array<uint32_t, k_ways> row;
        std::array<uint8_t, k_ways> way; // where in the set's memory it is
    };
    size_t set_of(uint32_t row) const;
    void to_front(Set &set, uint32_t i);
    uint8_t *data(size_t set, uint32_t i) const {
        return arena_.data() + (set * k_ways + sets_[set].way[i]) * row_bytes_;
    }

    uint64_t const row_bytes_;
    std::vector<Set> sets_;
    Arena arena_;
};

} // namespace emoe
