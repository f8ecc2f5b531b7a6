// Eviction policies: the exact order of what they would give up.
#include "cache/policy.h"

#include "check.h"

#include <algorithm>

using namespace emoe;

static ExpertIndex worst(const EvictionPolicy &p, std::vector<ExpertIndex> experts) {
    return *std::max_element(experts.begin(), experts.end(),
                             [&](ExpertIndex a, ExpertIndex b) { return p.badness(a) < p.badness(b); });
}

// All experts in one layer, one visit a use.
static std::unique_ptr<EvictionPolicy> make(PolicyKind kind, uint32_t n) {
    return make_policy(kind, PolicyShape{{0, n}, 1});
}
static void use(EvictionPolicy &p, ExpertIndex e, float weight = 1) {
    Use const u{e, 1, weight};
    p.on_visit(0, 1, &u, 1);
}

static void lru_gives_up_the_longest_unused() {
    auto p = make(PolicyKind::lru, 4);
    for (ExpertIndex e : {1u, 2u, 0u}) use(*p, e);
    CHECK_EQ(worst(*p, {0, 1, 2}), 1u);
    use(*p, 1);
    CHECK_EQ(worst(*p, {0, 1, 2}), 2u);
}

static void lfu_gives_up_the_seldom_used_and_of_equals_the_older() {
    auto p = make(PolicyKind::lfu, 4);
    for (ExpertIndex e : {1u, 1u, 2u, 3u}) use(*p, e);
    CHECK_EQ(worst(*p, {1, 2, 3}), 2u);
    use(*p, 2);
    CHECK_EQ(worst(*p, {1, 2, 3}), 3u);
}

static void lfru_keeps_the_often_used_through_a_sweep() {
    auto p = make(PolicyKind::lfru, 100);
    auto lru = make(PolicyKind::lru, 100);
    std::vector<ExpertIndex> all = {7};
    for (int i = 0; i < 50; i++) { // a favourite
        use(*p, 7);
        use(*lru, 7);
    }
    for (ExpertIndex e = 10; e < 60; e++) {
        use(*p, e);
        use(*lru, e);
        all.push_back(e);
    }
    // The favourite is the longest unused of all, and yet not the one to go.
    CHECK_EQ(worst(*p, all), 10u);
    CHECK_EQ(worst(*lru, all), 7u);
    for (int i = 0; i < 4000; i++) use(*p, 99);
    CHECK_EQ(worst(*p, {7, 99}), 7u); // in the end it goes too
}

static void mrs_gives_up_the_lowest_score() {
    auto p = make(PolicyKind::mrs, 3);
    use(*p, 0, 0.9f);
    use(*p, 1, 0.1f);
    CHECK_EQ(worst(*p, {0, 1}), 1u);
    for (int i = 0; i < 40; i++) use(*p, 1, 0.1f);
    CHECK_EQ(worst(*p, {0, 1}), 0u);
}

// Two layers of four experts: layer 0 has 0..3, layer 1 has 4..7.
static void next_use_counts_the_way_to_the_layer() {
    auto p = make_policy(PolicyKind::next_use, PolicyShape{{0, 4, 8}, 1});
    Use const u0{0, 1, 1}, u4{4, 1, 1};
    for (int i = 0; i < 20; i++) {
        p->on_visit(0, 1, &u0, 1);
        p->on_visit(1, 1, &u4, 1);
    }
    // Equally often used; after layer 1 comes layer 0, so its expert is needed sooner.
    CHECK_EQ(worst(*p, {0, 4}), 4u);
    p->on_visit(0, 1, &u0, 1);
    CHECK_EQ(worst(*p, {0, 4}), 0u);
    // The never used are worse to keep than either.
    CHECK(p->badness(1) > p->badness(0) && p->badness(5) > p->badness(4));
}

static void next_use_learns_a_batch_as_its_tokens() {
    auto one = make(PolicyKind::next_use, 4), many = make(PolicyKind::next_use, 4);
    for (int i = 0; i < 200; i++) use(*one, 0);
    Use const u{0, 200, 1};
    many->on_visit(0, 200, &u, 1);
    CHECK(one->probability(0) > 0.9 && many->probability(0) > 0.9);
    CHECK(many->probability(1) < 0.1);
}

static void a_warm_start_is_believed_and_outlived() {
    auto p = make(PolicyKind::next_use, 4);
    p->warm_start({0.9f, 0.1f, 0.0f, 0.0f});
    CHECK_EQ(worst(*p, {0, 1}), 1u);
    p->warm_start({0.1f}); // of another model: ignored
    CHECK_EQ(worst(*p, {0, 1}), 1u);
    for (int i = 0; i < 500; i++) use(*p, 1);
    CHECK_EQ(worst(*p, {0, 1}), 0u);
    CHECK_EQ(p->rates().size(), 4u);
    CHECK(make(PolicyKind::lru, 4)->rates().empty());
}

int main() {
    lru_gives_up_the_longest_unused();
    lfu_gives_up_the_seldom_used_and_of_equals_the_older();
    lfru_keeps_the_often_used_through_a_sweep();
    mrs_gives_up_the_lowest_score();
    next_use_counts_the_way_to_the_layer();
    next_use_learns_a_batch_as_its_tokens();
    a_warm_start_is_believed_and_outlived();
    return g_failures;
}
