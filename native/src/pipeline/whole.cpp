// Layers that are whole in memory: llama.cpp multiplies by them as it would by its own.
//
// Its product reads expert e at data + e * stride. So the experts of such a layer lie in slots that follow each other,
// their homes, and alike in each: reads bring them with the bytes before them in their block of the file, which may
// differ from expert to expert. Each is moved at most once. The slots are kept from then on; a smaller cache turns
// the layers back, and what stays in memory stays where it is.
#include "pipeline/streamer.h"

#include <algorithm>
#include <cstring>

namespace emoe {

namespace {
// Moved before one graph: a few hundredths of a second.
constexpr uint64_t k_packed_at_once = uint64_t{64} << 20;
} // namespace

const WholeLayer *Streamer::whole(uint32_t layer) const {
    return leaves_whole_ && whole_[layer].stride != 0 ? &whole_[layer] : nullptr;
}

void Streamer::count_whole(uint32_t layer, uint64_t n_use) {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.n_hit += std::min<uint64_t>(n_use, layout_.layers[layer].n_expert);
}

void Streamer::find_whole() {
    leaves_whole_ = !trace_ && !trial_ && n_watched_ == 0;
    if (n_watched_ != 0) n_watched_--;
    if (n_whole_ == whole_.size() || !on_gpu_.empty() || !cache_->holds_all()) return;
    uint64_t packed_bytes = 0;
    for (uint32_t l = 0; l < whole_.size() && packed_bytes < k_packed_at_once; l++)
        if (whole_[l].stride == 0 && make_whole(l, &packed_bytes)) n_whole_++;
}

void Streamer::forget_whole() {
    for (uint32_t l = 0; l < whole_.size() && n_whole_ != 0; l++) {
        if (whole_[l].stride == 0) continue;
        whole_[l] = WholeLayer{};
        n_whole_--;
        ExpertLayer const &spec = layout_.layers[l];
        for (uint32_t e = 0; e < spec.n_expert; e++) cache_->set_kept(cache_->home(spec.first + e), false);
    }
}

bool Streamer::all_ready(uint32_t layer) const {
    ExpertLayer const &spec = layout_.layers[layer];
    SlotId id;
    for (uint32_t e = 0; e < spec.n_expert; e++)
        if (!cache_->find(spec.first + e, &id) || cache_->at(id).ready != spec.all_matrices()) return false;
    return true;
}

bool Streamer::make_whole(uint32_t layer, uint64_t *packed_bytes) {
    ExpertLayer const &spec = layout_.layers[layer];
    uint32_t const cls = cache_->class_of(spec.first);
    if (!spec.packed.possible || spec.packed.slot_bytes > cache_->slot_bytes(cls) || !all_ready(layer)) return false;
    for (uint32_t e = 0; e < spec.n_expert; e++)
        if (cache_->class_of(spec.first + e) != cls || !cache_->bring_home(spec.first + e)) return false;
    for (uint32_t e = 0; e < spec.n_expert; e++) {
        *packed_bytes += pack(layer, e);
        cache_->set_kept(cache_->home(spec.first + e), true);
    }
    WholeLayer &whole = whole_[layer];
    whole.stride = cache_->slot_bytes(cls);
    for (uint32_t m = 0; m < spec.matrices.size(); m++) whole.at[m] = at(spec, 0, m, cache_->home(spec.first));
    return true;
}

// Returns the bytes that were moved.
uint64_t Streamer::pack(uint32_t layer, uint32_t expert) {
    ExpertLayer const &spec = layout_.layers[layer];
    SlotId const id = cache_->home(spec.first + expert);
    if (cache_->at(id).packed) return 0;
    Place const &place = spec.places[expert];
    uint64_t moved = 0;
    for (uint32_t m = 0; m < spec.matrices.size(); m++) {
        if (place.at[m] == spec.packed.at[m]) continue;
        // Towards the beginning, the first first: what is not yet moved is not written over.
        memmove(cache_->data(id) + spec.packed.at[m], cache_->data(id) + place.at[m], spec.slice(expert, m).bytes);
        moved += spec.slice(expert, m).bytes;
    }
    cache_->set_packed(id);
    return moved;
}

} // namespace emoe
