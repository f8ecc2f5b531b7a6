// edgemoe.h: devices.
#include "llama/devices.h"
#include "base/guard.h"

#include <edgemoe.h>

using namespace emoe;

uint32_t emoe_device_count(void) {
    uint32_t n = 0; // also where llama.cpp cannot be started: the next call that can fail says why
    (void)guarded(nullptr, [&n] { n = device_count(); });
    return n;
}

emoe_status emoe_device_get(uint32_t i, emoe_device_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(info, "emoe_device_info");
        write_struct(info, device_info(i));
    });
}

emoe_status emoe_backend_load(const char *path, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        load_backend(path);
    });
}
