// edgemoe.h: measuring.
#include "base/guard.h"
#include "engine/speed.h"

using namespace emoe;

emoe_status emoe_storage_measure(const char *path, uint64_t block_bytes, uint32_t n_lane, uint64_t max_bytes,
                                 uint64_t max_ns, emoe_storage_speed *speed, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_struct(speed, "emoe_storage_speed");
        write_struct(speed, measure_storage(path, block_bytes, n_lane, max_bytes, max_ns));
    });
}

emoe_status emoe_compute_measure(const char *type, uint32_t n_threads, uint64_t max_ns, uint64_t *bytes_per_s,
                                 emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(type, "type");
        check_pointer(bytes_per_s, "bytes_per_s");
        *bytes_per_s = measure_compute(type, n_threads, max_ns);
    });
}
