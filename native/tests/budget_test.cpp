// How a budget is divided, and how the cache follows the process.
#include "budget/allowance.h"

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
    for (int i = 0; i < 10; i++) a.check();
    CHECK_EQ(p.cache, 100 * k_mib);
    p.outside -= 2100 * k_mib; // all of it has gone, and was counted once
    for (int i = 0; i < 20; i++) a.check();
    CHECK(p.cache <= before && p.cache + 10 * k_mib > before);
    a.spend(1000 * k_mib);
    p.cache = 0; // a cache that is not full gets no more than it had
    for (int i = 0; i < 20; i++) a.check();
    CHECK_EQ(a.plan().cache_bytes, before);
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
    // The cache is filled meanwhile, by answers that are computed: no more stays than was asked for.
    uint64_t const resident = a.give_way(20 * k_mib, "a test");
    p.outside += 300 * k_mib;
    a.take_back(resident, 20 * k_mib);
    p.outside -= 300 * k_mib;
    CHECK_EQ(p.cache, before - 50 * k_mib);
    a.take_back(0, 20 * k_mib); // it has gone
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

// What fails while something grows is told, also when the cache then cannot be resized: it used to end the process.
static void a_failure_inside_is_told_when_resizing_fails_too() {
    bool broken = false;
    uint64_t cache = 0;
    Allowance a(
        chosen(1000 * k_mib), model(), 0,
        [&](uint64_t bytes) {
            if (broken) throw Error(EMOE_ERR_INTERNAL, "no resizing now");
            cache = bytes;
        },
        [&] { return 400 * k_mib + cache; });
    std::string told;
    try {
        a.growing(100 * k_mib, "a test", [&] {
            broken = true;
            throw Error(EMOE_ERR_IO, "the first failure");
        });
    } catch (const Error &e) {
        told = e.what();
    }
    CHECK(told == "the first failure");
    told.clear();
    broken = false;
    try {
        a.growing(100 * k_mib, "a test", [&] { broken = true; });
    } catch (const Error &e) {
        told = e.what();
    }
    CHECK(told == "no resizing now");
}

static emoe_context_sizes sizes_of(uint32_t n_ctx, uint32_t n_ubatch) {
    emoe_context_sizes s = {};
    s.kv_bytes = n_ctx * uint64_t{10'000};
    s.output_bytes = k_mib;
    s.decode_bytes = 20 * k_mib;
    s.prefill_bytes = n_ubatch * uint64_t{100'000};
    return s;
}

static Machine machine_of(uint64_t limit_mib) {
    Machine m;
    m.total_bytes = 16000 * k_mib;
    m.limit_bytes = limit_mib * k_mib;
    m.available_bytes = limit_mib * k_mib / 2;
    m.process.rss_bytes = 30 * k_mib;
    return m;
}

static void a_budget_beyond_the_machines_limit_is_refused() {
    Budget b;
    b.process_bytes = 30 * k_mib;
    uint64_t const resident = bounds_of(model(), sizes_of, b).enough_bytes;
    std::string told;
    try {
        budget_bytes(EMOE_BUDGET_BYTES, 400 * k_mib, resident, machine_of(220)); // a cgroup on a machine of 16 GB
    } catch (const Error &e) {
        CHECK_EQ(e.status, EMOE_ERR_ARGUMENT);
        told = e.what();
    }
    CHECK(told.find("may use, 220 MiB") != std::string::npos);
    CHECK_EQ(budget_bytes(EMOE_BUDGET_BYTES, 400 * k_mib, resident, machine_of(800)), 400 * k_mib);
    CHECK_EQ(budget_bytes(EMOE_BUDGET_BYTES, 400 * k_mib, 100 * k_mib, machine_of(220)), 400 * k_mib); // it needs less
    CHECK_EQ(budget_bytes(EMOE_BUDGET_SHARE, 500'000, resident, machine_of(800)), 400 * k_mib);
    // 85 % of what is available and what this process has, and never more than every expert takes.
    CHECK_EQ(budget_bytes(EMOE_BUDGET_AUTO, 0, resident, machine_of(800)) / k_mib, 430 * 85 / 100);
    CHECK_EQ(budget_bytes(EMOE_BUDGET_AUTO, 0, 100 * k_mib, machine_of(800)), 100 * k_mib);
}

// Sizes are measured: asked again, a host's can be larger. A plan that no longer fits was once taken from nothing.
static void sizes_that_grow_while_they_are_asked_for_are_no_plan() {
    Budget b;
    b.process_bytes = 30 * k_mib;
    Bounds const bounds = bounds_of(model(), sizes_of, b);
    b.bytes = bounds.smallest_bytes;
    CHECK_EQ(make_plan(model(), sizes_of, b, bounds).n_ctx, 512u);
    int n_asked = 0;
    auto const grows = [&](uint32_t n_ctx, uint32_t n_ubatch) {
        emoe_context_sizes s = sizes_of(n_ctx, n_ubatch);
        s.vocab_bytes = n_asked++ == 0 ? 0 : 3 * k_mib;
        return s;
    };
    uint64_t named = 0;
    try {
        make_plan(model(), grows, b, bounds);
    } catch (const BudgetError &e) {
        named = e.smallest_bytes;
    }
    CHECK_EQ(named, bounds.smallest_bytes);
}

int main() {
    the_cache_gets_what_is_left();
    a_budget_too_small_changes_nothing();
    a_warning_takes_half_then_all_and_gives_it_back();
    a_process_that_grows_takes_from_the_cache();
    room_is_made_before_and_given_back_after();
    a_failure_inside_is_told_when_resizing_fails_too();
    a_budget_beyond_the_machines_limit_is_refused();
    sizes_that_grow_while_they_are_asked_for_are_no_plan();
    return g_failures;
}
