// The controller of lossy skipping: it spends what was named, whatever is missing, and less where little is.
#include "pipeline/price.h"
#include "pipeline/routing.h"

#include "check.h"

#include <cmath>
#include <limits>
#include <random>

using namespace emoe;

namespace {

constexpr float k_never = std::numeric_limits<float>::infinity();

// Divergence grows as the sum to the power 0.8, the sum as the limit to the power 2.
Prices prices(std::vector<float> cost = {1, 2, k_never, 0}) {
    Prices p;
    p.cost = std::move(cost);
    for (double const limit : {1e-4, 2e-4, 4e-4, 8e-4}) {
        p.limit.push_back(limit);
        p.raw.push_back(1e5 * limit * limit);
        p.nats.push_back(std::pow(p.raw.back(), 0.8));
    }
    return p;
}

bool near(double a, double b, double share) { return std::fabs(a - b) <= share * std::fabs(b); }

// Mean raw nats a token of the second half of n tokens, each with n_use missing uses of random costs.
double spend(PriceController *c, uint32_t n, uint32_t n_use, uint32_t seed, double scale = 1e-3) {
    std::mt19937 random(seed);
    std::exponential_distribution<double> costs(1 / scale);
    double sum = 0;
    for (uint32_t t = 0; t < n; t++) {
        c->begin_token();
        for (uint32_t i = 0; i < n_use; i++) {
            double const cost = costs(random);
            if (c->pays(cost, 1) && t >= n / 2) sum += cost;
        }
        c->end_token();
    }
    return sum / (n - n / 2);
}

} // namespace

static void numbers_that_are_no_prices_are_named() {
    CHECK(price_problem(prices(), 4).empty());
    CHECK(price_problem(prices(), 5).find("4 experts, the model has 5") != std::string::npos);
    CHECK(!price_problem(prices({1, -1, 0, 0}), 4).empty());
    CHECK(!price_problem(prices({1, std::nanf(""), 0, 0}), 4).empty());
    Prices p = prices();
    p.nats[2] = p.nats[1];
    CHECK(price_problem(p, 4).find("does not grow") != std::string::npos);
    p = prices();
    p.raw[0] = 0;
    CHECK(!price_problem(p, 4).empty());
    p = prices();
    p.limit.pop_back();
    CHECK(!price_problem(p, 4).empty());
    CHECK(!price_problem(Prices{{1}, {1}, {1}, {1}}, 1).empty());
}

static void a_use_costs_with_the_square_of_its_weight() {
    PriceController const c(prices(), 0.02);
    CHECK(near(c.cost(1, 0.5F, 4), 2 * 0.25 * 4, 1e-12));
    CHECK(std::isinf(c.cost(2, 0.1F, 1)));
}

static void what_is_infinite_or_no_number_is_never_left_out() {
    PriceController c(prices(), 0.05);
    c.begin_token();
    CHECK(!c.pays(std::numeric_limits<double>::infinity(), 1));
    CHECK(!c.pays(std::nan(""), 1));
    CHECK(c.pays(0, 1));
    CHECK(c.pays(c.limit() * 0.9, 1));
    CHECK(!c.pays(c.limit() * 0.9, 0.5)); // a small expert saves little
    CHECK(!c.pays(c.limit(), 1));
}

static void the_mean_is_the_price() {
    for (double const price : {0.01, 0.02, 0.05})
        for (uint32_t const n_use : {30u, 100u, 300u}) {
            PriceController c(prices(), price);
            double const mean = spend(&c, 4000, n_use, n_use);
            double const target = std::pow(price, 1 / 0.8);
            if (c.limit() < 2e-4) // far from its ceiling, where it may spend less
                CHECK(near(mean, target, 0.05));
            CHECK(mean < 1.05 * target);
            CHECK(c.spent() < 1.2 * price);
            CHECK(c.price() == price);
        }
}

static void where_little_is_missing_less_is_spent() {
    PriceController c(prices(), 0.05);
    double const mean = spend(&c, 4000, 1, 7);
    CHECK(mean > 0 && mean < 0.2 * std::pow(0.05, 1 / 0.8));
    CHECK(c.spent() > 0 && c.spent() < 0.02);
    double const ceiling = c.limit();
    (void)spend(&c, 1000, 0, 8);
    CHECK(c.limit() == ceiling); // what was not spent is not saved for later
    CHECK(c.spent() < 1e-4);
}

static void no_token_spends_many_times_the_mean() {
    PriceController c(prices(), 0.05);
    (void)spend(&c, 500, 1, 9); // the limit is at its ceiling
    c.begin_token();
    double sum = 0;
    for (int i = 0; i < 100000; i++) sum += c.pays(1e-5, 1) ? 1e-5 : 0;
    CHECK(sum > 0 && sum <= 6.001 * std::pow(0.05, 1 / 0.8));
    c.end_token();
    CHECK(c.pays(1e-5, 1)); // the next has its own
}

static void what_is_left_out_is_in_no_group() {
    int32_t const ids[2][3] = {{0, 1, 2}, {2, 0, 3}};
    float const weights[6] = {0.5F, 0.3F, 0.2F, 0.6F, 0.3F, 0.1F};
    Routing r;
    r.ids = reinterpret_cast<const uint8_t *>(ids);
    r.n_token = 2;
    r.n_rank = 3;
    r.token_stride = sizeof ids[0];
    r.rank_stride = sizeof ids[0][0];
    r.weights = weights;
    RoutingGroups groups(4);
    uint8_t const skip[6] = {0, 1, 1, 0, 0, 0};
    groups.group(r, 4, nullptr, skip);
    CHECK_EQ(groups.skipped.size(), 2u);
    CHECK(groups.skipped[1].token == 0 && groups.skipped[1].rank == 2);
    CHECK_EQ(groups.experts.size(), 3u); // 0, 2, 3: expert 2 is computed for the second token
    CHECK_EQ(groups.rows.size(), 4u);
    for (VisitExpert const &e : groups.experts) CHECK(e.expert != 1);
    groups.group(r, 4, nullptr);
    CHECK(groups.skipped.empty() && groups.rows.size() == 6);
}

int main() {
    numbers_that_are_no_prices_are_named();
    a_use_costs_with_the_square_of_its_weight();
    what_is_infinite_or_no_number_is_never_left_out();
    the_mean_is_the_price();
    where_little_is_missing_less_is_spent();
    no_token_spends_many_times_the_mean();
    what_is_left_out_is_in_no_group();
    return g_failures;
}
