#include "cache/rows.h"

#include <algorithm>

namespace emoe {

RowCache::RowCache(uint64_t bytes, uint32_t row_bytes, uint64_t n_row) : row_bytes_(row_bytes) {
    uint64_t const set_bytes = k_ways * row_bytes_ + sizeof(Set);
    uint64_t const enough = (n_row + k_ways - 1) / k_ways * 2; // rows fall into sets unevenly
    Set empty;
    empty.row.fill(k_none);
    for (uint32_t i = 0; i < k_ways; i++) empty.way[i] = static_cast<uint8_t>(i);
    sets_.assign(std::max<uint64_t>(1, std::min(bytes / set_bytes, enough)), empty);
    arena_ = Arena(sets_.size() * k_ways * row_bytes_, false);
}

size_t RowCache::set_of(uint32_t row) const {
    uint32_t const hash = static_cast<uint32_t>((row * uint64_t{0x9E3779B97F4A7C15u}) >> 32);
    return static_cast<size_t>((uint64_t{hash} * sets_.size()) >> 32);
}

void RowCache::to_front(Set &set, uint32_t i) {
    uint32_t const row = set.row[i];
    uint8_t const way = set.way[i];
    for (; i > 0; i--) {
        set.row[i] = set.row[i - 1];
        set.way[i] = set.way[i - 1];
    }
    set.row[0] = row;
    set.way[0] = way;
}

const uint8_t *RowCache::find(uint32_t row) {
    size_t const s = set_of(row);
    Set &set = sets_[s];
    auto const found = std::find(set.row.begin(), set.row.end(), row);
    if (found == set.row.end()) return nullptr;
    to_front(set, static_cast<uint32_t>(found - set.row.begin()));
    return data(s, 0);
}

uint8_t *RowCache::insert(uint32_t row) {
    size_t const s = set_of(row);
    Set &set = sets_[s];
    set.row[k_ways - 1] = row;
    to_front(set, k_ways - 1);
    return data(s, 0);
}

} // namespace emoe
