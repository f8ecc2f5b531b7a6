// edgemoe.h: quantizing.
#include "base/guard.h"
#include "llama/compensate.h"

using namespace emoe;

emoe_status emoe_quantize_block(int32_t type, float *weights, const float *factor, const float *importance,
                                uint64_t n_row, uint8_t *out, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(weights, "weights");
        check_pointer(factor, "factor");
        check_pointer(importance, "importance");
        check_pointer(out, "out");
        compensate_block(type, weights, factor, importance, n_row, out);
    });
}
