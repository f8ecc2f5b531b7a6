// The parts of a session that need no model: how the cache follows the process, and text from bytes.
#include "budget/allowance.h"
#include "text/stream.h"

#include "check.h"

using namespace emoe;

static constexpr uint64_t k_mib = uint64_t{1} << 20;

static emoe_model_info model() {
    emoe_model_info m = {};
    m.slot_bytes = 2000 * k_mib;
    m.slot_min_bytes = 40 * k_mib;
    m.n_expert_total = 1000;
    snprintf(m.name, sizeof m.name, "a model");
    return m;
}

static emoe_plan chosen(uint64_t budget_bytes) {
    emoe_plan p = {};
    p.budget_bytes = budget_bytes;
    p.margin_bytes = margin_bytes(budget_bytes);
    p.process_bytes = 30 * k_mib;
    p.dense_bytes = 370 * k_mib;
    p.slot_min_bytes = 40 * k_mib;
    p.prefill_bytes = 60 * k_mib;
    return p;
}

// A process whose memory is known, and its cache.
struct Process {
    uint64_t outside = 400 * k_mib;
    uint64_t cache = 0;
    Allowance start(uint64_t budget_mib, uint64_t untouched = 0) {
        return Allowance(
            chosen(budget_mib * k_mib), model(), untouched, [this](uint64_t bytes) { cache = bytes; },
            [this] { return outside + cache; });
    }
};

static bool refused(Allowance &a, uint64_t budget_mib, uint64_t *smallest) {
    try {
        a.spend(budget_mib * k_mib);
    } catch (const BudgetError &e) {
        *smallest = e.smallest_bytes;
        return true;
    }
    return false;
}

static void the_cache_gets_what_is_left() {
    Process p;
    Allowance a = p.start(1000);
    CHECK_EQ(p.outside + p.cache + margin_bytes(1000 * k_mib), 1000 * k_mib);
    CHECK_EQ(a.plan().cache_bytes, p.cache);
    Process q;
    Allowance b = q.start(1000, 50 * k_mib);
    CHECK_EQ(q.cache + 50 * k_mib, p.cache);
    Process r;
    Allowance c = r.start(9000);
    CHECK_EQ(r.cache, 2060 * k_mib); // every expert, and what they lend
    CHECK_EQ(c.plan().n_slot, 1000u);
}

static void a_budget_too_small_changes_nothing() {
    Process p;
    Allowance a = p.start(1000);
    uint64_t const before = p.cache;
    uint64_t smallest = 0;
    CHECK(refused(a, 450, &smallest));
    CHECK_EQ(smallest, 400 * k_mib + 100 * k_mib + 12 * k_mib);
    CHECK_EQ(p.cache, before);
    CHECK_EQ(a.plan().budget_bytes, 1000 * k_mib);
    CHECK(!refused(a, 512, &smallest)); // what it named
    CHECK_EQ(p.cache, 100 * k_mib);
}

static void a_warning_takes_half_then_all_and_gives_it_back() {
    Process p;
    Allowance a = p.start(1000);
    uint64_t const whole = p.cache, least = 100 * k_mib;
    a.warn(EMOE_MEMORY_LOW);
    CHECK_EQ(p.cache, least + (whole - least) / 2);
    CHECK_EQ(a.plan().budget_bytes, 1000 * k_mib);
    a.warn(EMOE_MEMORY_CRITICAL);
    CHECK_EQ(p.cache, least);
    a.spend(900 * k_mib); // a new budget does not end the warning
    CHECK_EQ(p.cache, least);
    a.spend(1000 * k_mib);
    a.warn(EMOE_MEMORY_NORMAL);
    CHECK_EQ(p.cache, whole);
}

static void a_process_that_grows_takes_from_the_cache() {
    Process p;
    Allowance a = p.start(1000);
    uint64_t const before = p.cache;
    p.outside += 5 * k_mib; // the margin is for that
    a.check();
    CHECK_EQ(p.cache, before);
    p.outside += 95 * k_mib;
    a.check();
    CHECK_EQ(p.outside + p.cache + margin_bytes(1000 * k_mib), 1000 * k_mib);
    p.outside += 2000 * k_mib; // more than there is: the smallest cache stays
    a.check();
    CHECK_EQ(p.cache, 100 * k_mib);
}

static void room_is_made_before_and_given_back_after() {
    Process p;
    Allowance a = p.start(1000);
    uint64_t const before = p.cache;
    a.growing(200 * k_mib, "a test", [&] {
        CHECK_EQ(p.cache, before - 200 * k_mib);
        p.outside += 30 * k_mib;
    });
    CHECK_EQ(p.cache, before - 30 * k_mib);
    bool thrown = false;
    try {
        a.growing(900 * k_mib, "a test", [] {});
    } catch (const BudgetError &) {
        thrown = true;
    }
    CHECK(thrown);
    CHECK_EQ(p.cache, before - 30 * k_mib);
}

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
    the_cache_gets_what_is_left();
    a_budget_too_small_changes_nothing();
    a_warning_takes_half_then_all_and_gives_it_back();
    a_process_that_grows_takes_from_the_cache();
    room_is_made_before_and_given_back_after();
    only_whole_characters_come_out();
    a_stop_text_in_pieces_is_never_shown_in_part();
    return g_failures;
}
