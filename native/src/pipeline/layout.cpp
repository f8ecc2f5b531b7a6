#include "pipeline/layout.h"

#include <algorithm>
#include <map>

namespace emoe {

namespace {

// Bytes between two matrices of an expert that are rather read than left out: one read instead of two.
constexpr uint64_t k_merge_gap = 4096;
// One read brings at most this: a read's length is 32 bits.
constexpr uint64_t k_merge_most = uint64_t{1} << 30;
// A streamed expert passes through with one matrix read and one computed.
constexpr uint32_t k_min_slot = 4;

void place_expert(ExpertLayer *layer, uint32_t expert, uint32_t alignment) {
    Place place;
    place.first_piece = static_cast<uint32_t>(layer->pieces.size());
    for (uint32_t m = 0; m < layer->matrices.size(); m++) {
        Slice const &s = layer->slice(expert, m);
        Span const span = aligned_span(s, alignment);
        uint64_t const end = s.offset + s.bytes;
        if (place.n_piece > 0) {
            Piece &last = layer->pieces.back();
            uint64_t const last_end = last.offset + last.need;
            if (last.file == s.file && s.offset >= last_end && s.offset - last_end <= k_merge_gap &&
                end - last.offset <= k_merge_most) {
                last.need = static_cast<uint32_t>(end - last.offset);
                last.bytes = (last.need + alignment - 1) / alignment * alignment;
                last.matrices = static_cast<uint8_t>(last.matrices | 1u << m);
                place.at[m] = last.slot_offset + (s.offset - last.offset);
                place.slot_bytes = last.slot_offset + last.bytes;
                continue;
            }
        }
        Piece piece;
        piece.offset = span.offset;
        piece.bytes = span.bytes;
        piece.need = span.need;
        piece.slot_offset = place.slot_bytes;
        piece.file = s.file;
        piece.matrices = static_cast<uint8_t>(1u << m);
        layer->pieces.push_back(piece);
        place.n_piece++;
        place.at[m] = piece.slot_offset + span.skip;
        place.slot_bytes = piece.slot_offset + span.bytes;
    }
    layer->places.push_back(place);
}

PackedPlace packed_place(const ExpertLayer &layer) {
    PackedPlace packed;
    packed.possible = layer.n_expert > 0;
    for (uint32_t m = 0; m < layer.matrices.size(); m++) {
        Slice const &first = layer.slice(0, m);
        for (uint32_t e = 1; e < layer.n_expert; e++)
            if (layer.slice(e, m).type != first.type || layer.slice(e, m).bytes != first.bytes) packed.possible = false;
        packed.at[m] = packed.slot_bytes;
        packed.slot_bytes += first.bytes;
    }
    // As reads bring them, where that is alike for all.
    bool const alike = std::all_of(layer.places.begin(), layer.places.end(), [&](Place const &place) {
        return std::equal(std::begin(place.at), std::end(place.at), layer.places[0].at);
    });
    if (packed.possible && alike) {
        std::copy(std::begin(layer.places[0].at), std::end(layer.places[0].at), packed.at);
        packed.slot_bytes = layer.places[0].slot_bytes;
    }
    return packed;
}

} // namespace

PolicyShape Layout::shape() const {
    PolicyShape s;
    for (ExpertLayer const &layer : layers) s.first.push_back(layer.first);
    s.first.push_back(n_expert_total);
    s.n_expert_used = n_expert_used;
    return s;
}

void place_experts(Layout *layout, uint32_t alignment) {
    for (ExpertLayer &layer : layout->layers) {
        layer.places.clear();
        layer.pieces.clear();
        for (uint32_t e = 0; e < layer.n_expert; e++) place_expert(&layer, e, alignment);
        layer.packed = packed_place(layer);
    }
}

SlotClasses slot_classes(const Layout &layout, const std::vector<uint8_t> &on_gpu) {
    bool const any = on_gpu.empty() || std::find(on_gpu.begin(), on_gpu.end(), uint8_t{0}) != on_gpu.end();
    auto const cached = [&](ExpertIndex e) { return !any || on_gpu.empty() || on_gpu[e] == 0; };
    // Experts of one size in the file belong together, wherever in a block of it they begin.
    struct Group {
        uint64_t slot_bytes = 0;
        uint32_t n_expert = 0;
    };
    std::map<uint64_t, Group> by_bytes;
    auto const bytes_of = [](const ExpertLayer &layer, uint32_t expert) {
        uint64_t sum = 0;
        for (uint32_t m = 0; m < layer.matrices.size(); m++) sum += layer.slice(expert, m).bytes;
        return sum;
    };
    for (ExpertLayer const &layer : layout.layers)
        for (uint32_t e = 0; e < layer.n_expert; e++) {
            if (!cached(layer.first + e)) continue;
            Group &g = by_bytes[bytes_of(layer, e)];
            g.slot_bytes = std::max(g.slot_bytes, layer.places[e].slot_bytes);
            g.n_expert++;
        }
    std::vector<std::pair<uint64_t, Group>> groups(by_bytes.begin(), by_bytes.end());
    // Join the neighbours whose joining wastes least, while there are too many or it wastes next to nothing.
    auto const waste = [&](size_t i) { return (groups[i + 1].first - groups[i].first) * groups[i].second.n_expert; };
    while (groups.size() > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < groups.size(); i++)
            if (waste(i) < waste(best)) best = i;
        bool const trifle = (groups[best + 1].first - groups[best].first) * 100 <= groups[best + 1].first;
        if (groups.size() <= k_max_class && !trifle) break;
        groups[best + 1].second.n_expert += groups[best].second.n_expert;
        groups[best + 1].second.slot_bytes =
            std::max(groups[best + 1].second.slot_bytes, groups[best].second.slot_bytes);
        groups.erase(groups.begin() + static_cast<ptrdiff_t>(best));
    }

    SlotClasses out;
    uint64_t least = 0; // slots of a larger class are no smaller, so that they serve for both
    for (auto const &group : groups) {
        least = std::max(least, group.second.slot_bytes);
        out.classes.push_back(SlotClass{least, group.second.n_expert, 0});
    }
    out.class_of.resize(layout.n_expert_total);
    uint32_t most = 0;
    for (ExpertLayer const &layer : layout.layers) {
        uint32_t n = 0;
        for (uint32_t e = 0; e < layer.n_expert; e++) {
            if (!cached(layer.first + e)) continue;
            size_t c = 0;
            while (groups[c].first < bytes_of(layer, e)) c++;
            out.class_of[layer.first + e] = static_cast<uint8_t>(c);
            n++;
        }
        most = std::max(most, std::min(n, std::max(layout.n_expert_used, k_min_slot)));
    }
    // Whatever a token routes to fits in slots of the largest class.
    if (!out.classes.empty()) out.classes.back().n_min = most;
    return out;
}

} // namespace emoe
