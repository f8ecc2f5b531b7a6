#include "pipeline/layout.h"

#include <algorithm>

namespace emoe {

void place_regions(Layout *layout, uint32_t alignment) {
    for (ExpertLayer &layer : layout->layers) {
        uint64_t offset = 0;
        for (uint32_t m = 0; m < layer.matrices.size(); m++) {
            uint64_t region = 0;
            for (uint32_t e = 0; e < layer.n_expert; e++)
                region = std::max<uint64_t>(region, aligned_span(layer.slice(e, m), alignment).bytes);
            layer.matrices[m].slot_offset = offset;
            layer.matrices[m].region_bytes = region;
            offset += region;
        }
        layer.slot_bytes = offset;
    }
}

} // namespace emoe
