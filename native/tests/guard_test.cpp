// The C boundary: structs of other sizes, and exceptions.
#include "base/guard.h"

#include "check.h"

#include <string>

using namespace emoe;

namespace {

// A struct as a library knows it, as a caller with an older header does, and one with a newer.
struct Now {
    uint32_t struct_size;
    uint32_t first;
    uint64_t second;
    const char *third;
};
struct Older {
    uint32_t struct_size;
    uint32_t first;
};
struct Newer {
    Now now;
    uint64_t fourth;
};

// The refusal of a Now that begins at given; "" when it is taken.
std::string refusal(const void *given) {
    try {
        (void)read_struct(static_cast<const Now *>(given), "now");
    } catch (const Error &e) {
        CHECK_EQ(e.status, EMOE_ERR_ARGUMENT);
        return e.what();
    }
    return "";
}

bool says(const std::string &text, const char *what) { return text.find(what) != std::string::npos; }

void a_struct_of_the_same_size_is_taken_whole() {
    Now const given = {sizeof given, 1, 2, "3"};
    Now const read = read_struct(&given, "now");
    CHECK_EQ(read.first, 1u);
    CHECK_EQ(read.second, 2u);
    CHECK(std::string(read.third) == "3");
}

void what_a_smaller_struct_lacks_is_zero() {
    struct {
        Older given;
        unsigned char after[sizeof(Now)];
    } memory = {};
    memory.given = {sizeof memory.given, 7};
    memset(memory.after, 0xEE, sizeof memory.after);
    Now const read = read_struct(reinterpret_cast<const Now *>(&memory.given), "now");
    CHECK_EQ(read.struct_size, sizeof(Now));
    CHECK_EQ(read.first, 7u);
    CHECK_EQ(read.second, 0u);
    CHECK(read.third == nullptr);
}

void a_larger_struct_is_refused_as_newer() {
    Newer given = {};
    given.now.struct_size = sizeof given;
    CHECK(says(refusal(&given), "newer"));
    given.now.struct_size = UINT32_MAX;
    CHECK(says(refusal(&given), "newer"));
}

void a_size_that_cannot_be_is_refused() {
    Now given = {};
    for (uint32_t const size : {0u, 1u, 3u}) {
        given.struct_size = size;
        CHECK(says(refusal(&given), "sizeof"));
    }
    CHECK(says(refusal(nullptr), "null"));
}

void a_result_is_written_as_far_as_there_is_room() {
    Now const value = {0, 5, 6, "7"};
    Now whole = {};
    whole.struct_size = sizeof whole;
    write_struct(&whole, value);
    CHECK_EQ(whole.struct_size, sizeof whole);
    CHECK_EQ(whole.second, 6u);
    struct {
        Older given;
        unsigned char after[sizeof(Now)];
    } memory = {};
    memory.given.struct_size = sizeof memory.given;
    memset(memory.after, 0xEE, sizeof memory.after);
    write_struct(reinterpret_cast<Now *>(&memory.given), value);
    CHECK_EQ(memory.given.struct_size, sizeof(Older));
    CHECK_EQ(memory.given.first, 5u);
    for (unsigned char const c : memory.after) CHECK_EQ(c, 0xEE);
}

void an_exception_becomes_its_status_and_message() {
    emoe_error err = {};
    CHECK_EQ(guarded(&err, [] { fail(EMOE_ERR_IO, "disk %d", 7); }), EMOE_ERR_IO);
    CHECK(std::string(err.message) == "disk 7");
    CHECK_EQ(guarded(&err, [] { throw std::bad_alloc(); }), EMOE_ERR_MEMORY);
    CHECK_EQ(guarded(&err, [] { throw std::runtime_error("strange"); }), EMOE_ERR_INTERNAL);
    CHECK(std::string(err.message) == "strange");
    CHECK_EQ(guarded(&err, [] { throw 7; }), EMOE_ERR_INTERNAL);
    CHECK_EQ(guarded(nullptr, [] { fail(EMOE_ERR_FORMAT, "nobody listens"); }), EMOE_ERR_FORMAT);
    CHECK_EQ(guarded(&err, [] { throw Error(EMOE_ERR_IO, std::string(5000, 'x')); }), EMOE_ERR_IO);
    CHECK_EQ(strlen(err.message), sizeof err.message - 1);
    CHECK_EQ(guarded(nullptr, [] {}), EMOE_OK);
}

void a_failure_told_later_is_the_same() {
    Failure kept;
    CHECK(!kept);
    try {
        fail(EMOE_ERR_CANCELLED, "enough");
    } catch (...) {
        kept = caught();
    }
    CHECK(static_cast<bool>(kept));
    emoe_error err = {};
    CHECK_EQ(guarded(&err, [&] { kept.raise(); }), EMOE_ERR_CANCELLED);
    CHECK(std::string(err.message) == "enough");
}

} // namespace

int main() {
    a_struct_of_the_same_size_is_taken_whole();
    what_a_smaller_struct_lacks_is_zero();
    a_larger_struct_is_refused_as_newer();
    a_size_that_cannot_be_is_refused();
    a_result_is_written_as_far_as_there_is_room();
    an_exception_becomes_its_status_and_message();
    a_failure_told_later_is_the_same();
    return g_failures;
}
