// The C boundary: exceptions to statuses, checks that every function makes of its arguments.
#pragma once

#include "base/error.h"

#include <cstdio>
#include <new>

namespace emoe {

inline void say(emoe_error *err, const char *message) {
    if (err) snprintf(err->message, sizeof err->message, "%s", message);
}

template <typename F>
emoe_status guarded(emoe_error *err, F &&f) {
    try {
        f();
        return EMOE_OK;
    } catch (const Error &e) {
        say(err, e.what());
        return e.status;
    } catch (const std::bad_alloc &) {
        say(err, "out of memory");
        return EMOE_ERR_MEMORY;
    } catch (const std::exception &e) {
        say(err, e.what());
        return EMOE_ERR_INTERNAL;
    }
}

template <typename T>
void check_struct(const T *params, const char *name) {
    if (!params) fail(EMOE_ERR_ARGUMENT, "%s is null", name);
    if (params->struct_size != sizeof(T))
        fail(EMOE_ERR_ARGUMENT, "%s has %u bytes, this library's has %zu: header and library differ", name,
             params->struct_size, sizeof(T));
}

inline void check_pointer(const void *p, const char *name) {
    if (!p) fail(EMOE_ERR_ARGUMENT, "%s is null", name);
}

} // namespace emoe
