// The slot cache: residency, pins, size classes, and budgets that change.
#include "base/error.h"
#include "cache/cache.h"

#include "check.h"

using namespace emoe;

static ExpertCache small_cache(uint32_t n_slot) {
    ExpertCache c({SlotClass{4096, 16, 2}}, std::vector<uint8_t>(16, 0), make_policy(PolicyKind::lru, 16));
    c.set_bytes(uint64_t{4096} * n_slot);
    return c;
}

static SlotId fill(ExpertCache &c, ExpertIndex e) {
    std::vector<SlotId> taken;
    c.tick();
    c.on_use(e);
    c.take(0, 1, &taken);
    c.assign(taken[0], e, 1);
    c.arrived(taken[0], 0);
    c.unpin(taken[0]);
    return taken[0];
}

static bool has(const ExpertCache &c, ExpertIndex e) {
    SlotId id;
    return c.find(e, &id);
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
    std::vector<SlotId> taken;
    c.take(0, 1, &taken);
    c.assign(taken[0], 2, 1); // on its way
    c.unpin(taken[0]);
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

static void classes_share_a_budget_in_proportion() {
    std::vector<uint8_t> class_of(30, 0);
    for (size_t i = 10; i < 30; i++) class_of[i] = 1;
    ExpertCache c({SlotClass{4096, 10, 2}, SlotClass{8192, 20, 2}}, class_of, make_policy(PolicyKind::lfru, 30));
    CHECK_EQ(c.max_bytes(), 4096u * 10 + 8192u * 20);
    CHECK_EQ(c.min_bytes(), 4096u * 2 + 8192u * 2);
    for (uint64_t bytes = c.min_bytes(); bytes < c.max_bytes() + 100000; bytes += 1000) {
        CHECK(c.set_bytes(bytes));
        CHECK(c.bytes() <= bytes);
    }
    CHECK_EQ(c.bytes(), c.max_bytes());
}

static void a_failed_read_leaves_no_expert() {
    ExpertCache c = small_cache(4);
    std::vector<SlotId> taken;
    c.take(0, 1, &taken);
    c.assign(taken[0], 5, 2);
    c.arrived(taken[0], 0);
    c.set_failed(taken[0], 1);
    CHECK(c.is_failed(taken[0]));
    c.unpin(taken[0]);
    CHECK(!has(c, 5));
    CHECK_EQ(c.n_available(0), 4u);
}

int main() {
    evicts_the_oldest_when_full();
    never_evicts_what_is_pinned_or_loading();
    shrinking_evicts_and_growing_keeps();
    does_not_shrink_under_a_pinned_expert();
    refuses_less_than_one_layer_needs();
    memory_of_a_slot_is_its_own();
    classes_share_a_budget_in_proportion();
    a_failed_read_leaves_no_expert();
    return g_failures;
}
