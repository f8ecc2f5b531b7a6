// Whether the files are still those that were opened: what is in the cache belongs to what will be read.
#include "pipeline/streamer.h"

namespace emoe {

const File *Streamer::changed_file() {
    uint64_t const n_read = reader_->n_read();
    if (n_read == n_read_checked_) return nullptr;
    n_read_checked_ = n_read;
    return changed_of(files_);
}

bool Streamer::same_as_files() const {
    std::lock_guard<std::mutex> const lock(mutex_);
    SlotId id;
    for (ExpertLayer const &layer : layout_.layers)
        for (uint32_t e = 0; e < layer.n_expert; e++) {
            if (!cache_->find(layer.first + e, &id)) continue;
            for (uint32_t m = 0; m < layer.matrices.size(); m++) {
                Slice const &s = layer.slice(e, m);
                if ((cache_->at(id).ready >> m & 1) != 0 &&
                    !files_[s.file]->holds(at(layer, e, m, id), s.bytes, s.offset))
                    return false;
            }
        }
    return true;
}

void Streamer::accept_files() {
    for (auto const &file : files_) file->accept();
}

} // namespace emoe
