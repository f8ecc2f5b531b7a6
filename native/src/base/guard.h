// The C boundary: exceptions to statuses, checks that every function makes of its arguments, structs of other sizes.
#pragma once

#include "base/error.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <vector>

namespace emoe {

// On one line, whatever it quotes: names and templates are somebody's text.
inline void say(emoe_error *err, const char *message) {
    if (!err) return;
    char *to = err->message, *const end = err->message + sizeof err->message;
    for (; *message != 0; message++) {
        char shown[5];
        auto const c = static_cast<unsigned char>(*message);
        int const n = snprintf(shown, sizeof shown, c < 0x20 || c == 0x7f ? "\\x%02x" : "%c", c);
        if (end - to <= n) break;
        to = std::copy_n(shown, n, to);
    }
    *to = 0;
}

template <typename F>
emoe_status guarded(emoe_error *err, F &&f) {
    try {
        f();
        return EMOE_OK;
    } catch (...) {
        Failure const failure = caught();
        say(err, failure.message.c_str());
        return failure.status;
    }
}

inline void check_pointer(const void *p, const char *name) {
    if (!p) fail(EMOE_ERR_ARGUMENT, "%s is null", name);
}

// A struct as the caller has it: smaller (built with an older header) is right, larger is not.
template <typename T>
void check_struct(const T *given, const char *name) {
    check_pointer(given, name);
    if (given->struct_size < sizeof given->struct_size)
        fail(EMOE_ERR_ARGUMENT, "the struct_size of %s is %u: set it to sizeof(%s)", name, given->struct_size, name);
    if (given->struct_size > sizeof(T))
        fail(EMOE_ERR_ARGUMENT,
             "%s has %u bytes, this library knows %zu: the caller's header is newer than the library", name,
             given->struct_size, sizeof(T));
}

// A copy of a parameter struct, zero where the caller's is too old to have a field.
template <typename T>
T read_struct(const T *given, const char *name) {
    static_assert(std::is_trivially_copyable_v<T>, "a C struct");
    check_struct(given, name);
    T whole = {};
    memcpy(&whole, given, given->struct_size);
    whole.struct_size = sizeof whole;
    return whole;
}

// As much of a result as the caller's struct has room for. check_struct was made of it before.
template <typename T>
void write_struct(T *to, const T &value) {
    static_assert(std::is_trivially_copyable_v<T>, "a C struct");
    uint32_t const size = to->struct_size;
    memcpy(to, &value, std::min<size_t>(size, sizeof value));
    to->struct_size = size;
}

// All of what was found, if there is room for it. Its number.
template <typename T>
uint64_t copy_out(const std::vector<T> &found, T *to, uint64_t cap) {
    if (to && found.size() <= cap) std::copy(found.begin(), found.end(), to);
    return found.size();
}

} // namespace emoe
