// Failures inside the library: thrown as Error, turned into an emoe_status at the C boundary (base/guard.h).
#pragma once

#include <edgemoe.h>

#include <stdexcept>
#include <string>

namespace emoe {

class Error : public std::runtime_error {
public:
    Error(emoe_status code, const std::string &message) : std::runtime_error(message), status(code) {}
    const emoe_status status;
};

// printf-style; messages are lower case, name the value, and end without a full stop.
#ifdef __MINGW32__ // whose printf is C's in C++ programs, and whose attribute of this name is about another one
[[noreturn]] void fail(emoe_status status, const char *format, ...) __attribute__((format(gnu_printf, 2, 3)));
#else
[[noreturn]] void fail(emoe_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
#endif

// A failure that is told later: where it happens nothing may be thrown (a reader's thread, llama.cpp's callbacks).
struct Failure {
    emoe_status status = EMOE_OK;
    std::string message;

    explicit operator bool() const { return status != EMOE_OK; }
    [[noreturn]] void raise() const { throw Error(status, message); }
};
// Of the exception that is being handled.
Failure caught();

// "No such file or directory" for an errno value, thread-safe.
std::string os_message(int error_number);

} // namespace emoe
