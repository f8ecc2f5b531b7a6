// Eviction policies: the exact order of what they would give up.
#include "cache/policy.h"

#include "check.h"

#include <algorithm>

using namespace emoe;

static ExpertIndex worst(const EvictionPolicy &p, std::vector<ExpertIndex> experts, uint64_t now) {
    return *std::max_element(experts.begin(), experts.end(),
                             [&](ExpertIndex a, ExpertIndex b) { return p.badness(a, now) < p.badness(b, now); });
}

static void lru_gives_up_the_longest_unused() {
    auto p = make_policy(PolicyKind::lru, 4);
    for (ExpertIndex e : {0u, 1u, 2u, 0u}) p->on_use(e, e == 0 ? 9 : e);
    CHECK_EQ(worst(*p, {0, 1, 2}, 10), 1u);
    p->on_use(1, 10);
    CHECK_EQ(worst(*p, {0, 1, 2}, 11), 2u);
}

static void lfru_keeps_the_often_used_through_a_sweep() {
    auto p = make_policy(PolicyKind::lfru, 100);
    for (uint64_t t = 1; t <= 50; t++) p->on_use(7, t); // a favourite
    for (ExpertIndex e = 10; e < 60; e++) p->on_use(e, 41 + e);
    // The favourite is the longest unused of all, and yet not the one to go.
    std::vector<ExpertIndex> all = {7};
    for (ExpertIndex e = 10; e < 60; e++) all.push_back(e);
    CHECK_EQ(worst(*p, all, 101), 10u);
    auto lru = make_policy(PolicyKind::lru, 100);
    lru->on_use(7, 50);
    lru->on_use(10, 51);
    CHECK_EQ(worst(*lru, {7, 10}, 101), 7u);
}

static void lfru_gives_up_the_favourite_in_the_end() {
    auto p = make_policy(PolicyKind::lfru, 2);
    for (uint64_t t = 1; t <= 9; t++) p->on_use(0, t);
    p->on_use(1, 1000);
    CHECK_EQ(worst(*p, {0, 1}, 1010), 0u);
}

int main() {
    lru_gives_up_the_longest_unused();
    lfru_keeps_the_often_used_through_a_sweep();
    lfru_gives_up_the_favourite_in_the_end();
    return g_failures;
}
