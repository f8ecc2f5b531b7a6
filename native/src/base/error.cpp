#include "base/error.h"

#include <cstdarg>
#include <cstdio>
#include <new>
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

Failure caught() {
    try {
        throw;
    } catch (const Error &e) {
        return {e.status, e.what()};
    } catch (const std::bad_alloc &) {
        return {EMOE_ERR_MEMORY, "out of memory"};
    } catch (const std::length_error &) { // of a container: more than any memory
        return {EMOE_ERR_MEMORY, "out of memory"};
    } catch (const std::exception &e) {
        return {EMOE_ERR_INTERNAL, e.what()};
    } catch (...) {
        return {EMOE_ERR_INTERNAL, "an unknown exception"};
    }
}

std::string os_message(int error_number) { return std::generic_category().message(error_number); }

} // namespace emoe
