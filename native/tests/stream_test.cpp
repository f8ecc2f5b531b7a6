// Text from bytes.
#include "text/stream.h"

#include "check.h"

using namespace emoe;

static std::string fed(TextStream &s, const std::string &bytes) { return s.feed(bytes.data(), bytes.size()); }

static void only_whole_characters_come_out() {
    TextStream s;
    std::string const euro = "\xE2\x82\xAC";
    CHECK(fed(s, euro.substr(0, 1)).empty());
    CHECK(fed(s, euro.substr(1, 1)).empty());
    CHECK(fed(s, euro.substr(2, 1)) == euro);
    CHECK(fed(s, "a\xFF"
                 "b") == "a\xEF\xBF\xBD"
                         "b");
    CHECK(fed(s, "\xF0\x9F").empty());
    CHECK(s.finish() == "\xEF\xBF\xBD");
}

static void a_stop_text_in_pieces_is_never_shown_in_part() {
    TextStream s({"<end>", "STOP"});
    CHECK(fed(s, "1 <en") == "1 ");
    CHECK(fed(s, "try> <e") == "<entry> ");
    CHECK(!s.stopped());
    CHECK(fed(s, "nd> 2").empty());
    CHECK(s.stopped());
    CHECK(s.finish().empty());
}

int main() {
    only_whole_characters_come_out();
    a_stop_text_in_pieces_is_never_shown_in_part();
    return g_failures;
}
