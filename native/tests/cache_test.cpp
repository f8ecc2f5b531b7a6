// The slot cache: residency, pins, size classes, and budgets that change.
#include "base/error.h"
#include "cache/cache.h"

#include "check.h"

#include <cstring>

using namespace emoe;

static ExpertCache small_cache(uint32_t n_slot) {
    ExpertCache c(SlotClasses{{SlotClass{4096, 16, 2}}, std::vector<uint8_t>(16, 0)},
                  make_policy(PolicyKind::lru, PolicyShape{{0, 16}, 2}));
    c.set_bytes(uint64_t{4096} * n_slot);
    return c;
}

static SlotId fill(ExpertCache &c, ExpertIndex e) {
    Use const use{e, 1, 1.0f};
    c.on_visit(0, 1, &use, 1);
    SlotId const id = c.take_for(e);
    c.ask(id, 1);
    c.arrived(id, 1);
    c.unpin(id);
    return id;
}

static bool has(const ExpertCache &c, ExpertIndex e) {
    SlotId id;
    return c.find(e, &id);
}

static void fill_or_use(ExpertCache &c, ExpertIndex e) {
    Use const use{e, 1, 1.0f};
    if (has(c, e))
        c.on_visit(0, 1, &use, 1);
    else
        fill(c, e);
}

static void evicts_the_oldest_when_full() {
    ExpertCache c = small_cache(3);
    for (ExpertIndex e : {1u, 2u, 3u, 4u}) fill(c, e);
    CHECK(!has(c, 1));
    CHECK(has(c, 2) && has(c, 3) && has(c, 4));
    CHECK_EQ(c.n_evict(), 1u);
    CHECK_EQ(c.n_used(), 3u);
}

static void never_evicts_what_is_pinned_or_loading() {
    ExpertCache c = small_cache(3);
    c.pin(fill(c, 1));
    SlotId const id = c.take_for(2);
    c.ask(id, 1); // on its way
    c.unpin(id);
    fill(c, 3);
    CHECK_EQ(c.n_available(0), 1u);
    fill(c, 4);
    CHECK(has(c, 1) && has(c, 2) && has(c, 4) && !has(c, 3));
}

static void shrinking_evicts_and_growing_keeps() {
    ExpertCache c = small_cache(8);
    for (ExpertIndex e = 0; e < 8; e++) fill(c, e);
    CHECK(c.set_bytes(4096 * 4));
    CHECK_EQ(c.n_used(), 4u);
    CHECK_EQ(c.n_slot(), 4u);
    CHECK_EQ(c.bytes(), 4096u * 4);
    uint32_t before = 0;
    for (ExpertIndex e = 0; e < 8; e++) before += has(c, e) ? 1 : 0;
    CHECK_EQ(before, 4u);
    CHECK(c.set_bytes(4096 * 16));
    CHECK_EQ(c.n_used(), 4u);
    for (ExpertIndex e = 8; e < 16; e++) fill(c, e);
    CHECK_EQ(c.n_used(), 12u);
}

static void does_not_shrink_under_a_pinned_expert() {
    ExpertCache c = small_cache(8);
    SlotId last{};
    for (ExpertIndex e = 0; e < 8; e++) last = fill(c, e);
    c.pin(last);
    CHECK(last.slot >= 4);
    CHECK(!c.set_bytes(4096 * 4));
    CHECK_EQ(c.n_slot(), 8u);
    c.unpin(last);
    CHECK(c.set_bytes(4096 * 4));
}

static void refuses_less_than_one_layer_needs() {
    ExpertCache c = small_cache(8);
    bool refused = false;
    try {
        c.set_bytes(4096);
    } catch (const Error &e) {
        refused = e.status == EMOE_ERR_MEMORY;
    }
    CHECK(refused);
    CHECK_EQ(c.n_slot(), 8u);
}

static void memory_of_a_slot_is_its_own() {
    ExpertCache c = small_cache(4);
    SlotId const a = fill(c, 1);
    SlotId const b = fill(c, 2);
    c.data(a)[0] = 11;
    c.data(a)[4095] = 12;
    c.data(b)[0] = 21;
    CHECK_EQ(c.data(a)[0], 11);
    CHECK_EQ(c.data(a)[4095], 12);
    CHECK_EQ(c.data(b)[0], 21);
}

static ExpertCache two_classes() {
    std::vector<uint8_t> class_of(30, 0);
    for (size_t i = 10; i < 30; i++) class_of[i] = 1;
    return ExpertCache(SlotClasses{{SlotClass{4096, 10, 0}, SlotClass{8192, 20, 4}}, class_of},
                       make_policy(PolicyKind::next_use, PolicyShape{{0, 30}, 2}));
}

static void classes_share_a_budget_in_proportion() {
    ExpertCache c = two_classes();
    CHECK_EQ(c.max_bytes(), 4096u * 10 + 8192u * 20);
    CHECK_EQ(c.min_bytes(), 8192u * 4);
    for (uint64_t bytes = c.min_bytes(); bytes < c.max_bytes() + 100000; bytes += 1000) {
        CHECK(c.set_bytes(bytes));
        CHECK(c.bytes() <= bytes);
    }
    CHECK_EQ(c.bytes(), c.max_bytes());
    CHECK(c.set_bytes(c.min_bytes() * 3)); // few slots: all of the size that serves for any expert
    CHECK_EQ(c.n_slot(), 12u);
}

static void a_small_expert_may_lie_in_a_large_slot() {
    ExpertCache c = two_classes();
    CHECK(c.set_bytes(8192 * 4)); // none of the small class
    SlotId const id = fill(c, 3);
    CHECK_EQ(id.cls, 1u);
    uint32_t const four[k_max_class] = {2, 2}, five[k_max_class] = {3, 2}, large[k_max_class] = {0, 5};
    CHECK(c.fits(four));
    uint32_t const small_only[k_max_class] = {4, 0};
    CHECK(c.fits(small_only));
    CHECK(!c.fits(five));
    CHECK(!c.fits(large));
}

static void slots_move_to_the_class_that_needs_them() {
    ExpertCache c = two_classes();
    CHECK(c.set_bytes(4096 * 5 + 8192 * 16)); // most of either
    uint64_t const before = c.bytes();
    // The small ones are in use all the time, of the large ones only two.
    for (uint32_t round = 0; round < 300; round++) {
        for (ExpertIndex e = 0; e < 10; e++) fill_or_use(c, e);
        fill_or_use(c, 10 + round % 20);
        c.rebalance();
    }
    uint32_t n_small = 0;
    for (ExpertIndex e = 0; e < 10; e++) n_small += has(c, e) ? 1 : 0;
    CHECK(n_small >= 9);
    CHECK(c.bytes() <= before);
    CHECK(c.n_slot() > 0);
}

static void the_expected_are_given_up_last() {
    ExpertCache c = small_cache(3);
    for (ExpertIndex e : {1u, 2u, 3u}) fill(c, e);
    c.expect(1, 2); // the oldest, but wanted soon
    fill(c, 4);
    CHECK(has(c, 1) && !has(c, 2));
    c.expect(3, 9);
    c.expect(4, 9);
    c.expect(1, 9);
    CHECK(c.take(0, true).none()); // gently: none to be had
    fill(c, 5);                    // but whoever must, can
    CHECK(has(c, 5));
}

static void an_expectation_ends() {
    ExpertCache c = small_cache(3);
    for (ExpertIndex e : {1u, 2u, 3u}) fill(c, e);
    c.expect(1, 1);
    fill(c, 2 + 2); // one visit later it is over
    CHECK(!has(c, 1));
}

static void a_failed_read_leaves_no_expert() {
    ExpertCache c = small_cache(4);
    SlotId const id = c.take_for(5);
    c.ask(id, 1);
    c.ask(id, 2);
    c.set_failed(id);
    CHECK(!has(c, 5)); // whoever needs it reads it again, elsewhere
    c.unpin(id);
    CHECK_EQ(c.n_available(0), 3u); // a read is still writing into this one
    c.arrived(id, 2);
    CHECK_EQ(c.n_available(0), 4u);
    CHECK_EQ(c.n_used(), 0u);
}

static void the_abandoned_are_free_when_their_reads_have_ended() {
    ExpertCache c = small_cache(4);
    SlotId const id = c.take_for(5);
    c.ask(id, 1);
    c.unpin(id);
    c.abandon(id);
    CHECK(!has(c, 5));
    fill(c, 5); // meanwhile read again into another
    CHECK(has(c, 5));
    c.arrived(id, 1);
    CHECK(has(c, 5));
    CHECK_EQ(c.n_used(), 1u);
    CHECK_EQ(c.n_available(0), 4u);
}

static void an_expert_goes_home_and_who_was_there_takes_its_place() {
    ExpertCache c = small_cache(5);
    for (ExpertIndex e = 11; e < 16; e++) memset(c.data(fill(c, e)), static_cast<int>(e), 4096);
    CHECK(!c.holds_all() && !c.bring_home(14)); // slot 14 is not in use
    c.set_bytes(uint64_t{4096} * 16);
    CHECK(c.holds_all());
    SlotId id;
    CHECK(c.find(11, &id) && id.slot == 0);
    CHECK(c.bring_home(11)); // to a free slot
    CHECK(c.find(11, &id) && id == c.home(11) && *c.data(id) == 11);
    for (ExpertIndex e : {0u, 1u}) memset(c.data(fill(c, e)), static_cast<int>(e), 4096);
    CHECK(c.find(0, &id) && id == c.home(0));    // empty by then
    CHECK(c.find(1, &id) && !(id == c.home(1))); // 12 is there
    c.pin(id);
    CHECK(!c.bring_home(1));
    c.unpin(id);
    CHECK(c.bring_home(1));
    CHECK(c.find(1, &id) && id == c.home(1) && *c.data(id) == 1);
    CHECK(c.find(12, &id) && *c.data(id) == 12);
    CHECK_EQ(c.n_used(), 7u);
    CHECK_EQ(c.n_available(0), 16u);
    c.set_kept(c.home(1), true);
    CHECK_EQ(c.n_available(0), 15u);
}

int main() {
    an_expert_goes_home_and_who_was_there_takes_its_place();
    evicts_the_oldest_when_full();
    never_evicts_what_is_pinned_or_loading();
    shrinking_evicts_and_growing_keeps();
    does_not_shrink_under_a_pinned_expert();
    refuses_less_than_one_layer_needs();
    memory_of_a_slot_is_its_own();
    classes_share_a_budget_in_proportion();
    a_small_expert_may_lie_in_a_large_slot();
    slots_move_to_the_class_that_needs_them();
    the_expected_are_given_up_last();
    an_expectation_ends();
    a_failed_read_leaves_no_expert();
    the_abandoned_are_free_when_their_reads_have_ended();
    return g_failures;
}
