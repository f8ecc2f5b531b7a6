// edgemoe.h: the library itself.
#include "base/guard.h"
#include "base/machine.h"
#include "llama/cpu.h"
#include "llama/log.h"
#include "llama/stamp.h"

#include <edgemoe.h>

#include <string>

using namespace emoe;

uint32_t emoe_abi_version(void) { return EMOE_ABI_VERSION; }

const char *emoe_build_info(void) {
    static std::string const info = build_info();
    return info.c_str();
}

const char *emoe_build_stamp(void) {
    static std::string const stamp = build_stamp();
    return stamp.c_str();
}

emoe_status emoe_processor_check(emoe_error *err) {
    return guarded(err, [] { check_processor(); });
}

void emoe_set_log_level(uint32_t level) { set_log_level(level); }

emoe_status emoe_memory_get(const char *root, emoe_memory_info *info, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(info, "emoe_memory_info");
        Machine const m = machine(root ? root : "");
        emoe_memory_info i = {};
        i.n_core = m.n_core;
        i.total_bytes = m.total_bytes;
        i.limit_bytes = m.limit_bytes;
        i.available_bytes = m.available_bytes;
        i.rss_bytes = m.process.rss_bytes;
        i.peak_bytes = m.process.peak_bytes;
        i.anon_bytes = m.process.anon_bytes;
        i.file_bytes = m.process.file_bytes;
        write_struct(info, i);
    });
}

uint64_t emoe_memory_rss(void) { return rss_bytes(); }

void emoe_memory_trim(void) { trim_heap(); }
