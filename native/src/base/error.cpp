#include "base/error.h"

#include <cstdarg>
#include <cstdio>
#include <system_error>

namespace emoe {

void fail(emoe_status status, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    throw Error(status, text);
}

std::string os_message(int error_number) { return std::generic_category().message(error_number); }

} // namespace emoe
