// What reading ahead is decided by: guesses that learn, a governor that compares, and the replay of policies.
#include "pipeline/governor.h"
#include "pipeline/layout.h"
#include "pipeline/predictor.h"
#include "pipeline/replay.h"
#include "pipeline/routing.h"

#include "check.h"

#include <algorithm>
#include <random>

using namespace emoe;

namespace {

constexpr uint32_t k_n_embd = 32, k_n_expert = 16;

std::vector<float> vector_of(std::mt19937 &random, size_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> v(n);
    for (float &x : v) x = normal(random);
    return v;
}

std::vector<Use> top(const std::vector<float> &rows, const std::vector<float> &x, ExpertIndex first, uint32_t k) {
    std::vector<std::pair<float, ExpertIndex>> scores;
    for (uint32_t e = 0; e < k_n_expert; e++) {
        float s = 0;
        for (uint32_t i = 0; i < k_n_embd; i++) s += rows[e * k_n_embd + i] * x[i];
        scores.emplace_back(-s, first + e);
    }
    std::sort(scores.begin(), scores.end());
    std::vector<Use> uses;
    for (uint32_t i = 0; i < k; i++) uses.push_back(Use{scores[i].second, 1, 1.0f});
    return uses;
}

// The input of layer 1 is that of layer 0, but for the norms' weights and some noise.
void guesses_are_right_and_probabilities_true() {
    std::mt19937 random(1);
    PolicyShape const shape{{0, k_n_expert, 2 * k_n_expert}, 4};
    Predictor p(shape, k_n_embd);
    auto const rows = vector_of(random, k_n_expert * k_n_embd);
    std::vector<float> norm0(k_n_embd), norm1(k_n_embd);
    for (uint32_t i = 0; i < k_n_embd; i++) {
        norm0[i] = 0.5f + static_cast<float>(i % 5);
        norm1[i] = 0.5f + static_cast<float>(i % 7);
    }
    CHECK(!p.has_router(1));
    CHECK(p.guess(0, 1) == nullptr);
    p.set_router(0, rows.data(), norm0.data());
    p.set_router(1, rows.data(), norm1.data());
    double said = 0, was = 0;
    uint32_t n = 0;
    for (uint32_t t = 0; t < 600; t++) {
        auto const h = vector_of(random, k_n_embd);
        auto const noise = vector_of(random, k_n_embd);
        std::vector<float> x0(k_n_embd), x1(k_n_embd);
        for (uint32_t i = 0; i < k_n_embd; i++) {
            x0[i] = h[i] * norm0[i];
            x1[i] = (h[i] + 0.3f * noise[i]) * norm1[i];
        }
        p.set_input(0, x0.data());
        const float *guess = p.guess(0, 1);
        CHECK(guess != nullptr);
        CHECK(p.guess(0, 2) == nullptr); // there is no layer 2
        std::vector<Use> const uses = top(rows, x1, k_n_expert, 4);
        for (uint32_t e = 0; t >= 300 && e < k_n_expert; e++) {
            if (guess[e] < 0.5f) continue;
            said += static_cast<double>(guess[e]);
            n++;
            for (Use const &u : uses) was += u.expert == k_n_expert + e ? 1 : 0;
        }
        p.learn(1, uses.data(), uses.size());
    }
    CHECK(n > 300);
    CHECK(said / n - was / n < 0.1 && was / n - said / n < 0.1);
    CHECK(p.accuracy(1).n_found[0] * 10 > p.accuracy(1).n_used[0] * 7);
    CHECK_EQ(p.accuracy(0).n_used[0], 0u);
}

void what_is_always_used_is_learned_against_the_router() {
    std::mt19937 random(2);
    Predictor p(PolicyShape{{0, k_n_expert, 2 * k_n_expert}, 2}, k_n_embd);
    auto const rows = vector_of(random, k_n_expert * k_n_embd);
    p.set_router(0, rows.data(), nullptr);
    p.set_router(1, rows.data(), nullptr);
    Use const uses[] = {{k_n_expert + 3, 1, 1}, {k_n_expert + 5, 1, 1}};
    float last = 0;
    for (uint32_t t = 0; t < 400; t++) {
        auto const x = vector_of(random, k_n_embd);
        p.set_input(0, x.data());
        last = p.guess(0, 1)[3];
        p.learn(1, uses, 2);
    }
    CHECK(last > 0.7f);
}

void token(Governor &g, uint64_t with_ns, uint64_t without_ns, uint64_t *n_with) {
    bool const ahead = g.reads_ahead(1);
    *n_with += ahead ? 1 : 0;
    g.end_token(ahead ? with_ns : without_ns, 900, 1000);
}

void what_does_not_pay_is_stopped_and_tried_again() {
    Governor g(PrefetchMode::automatic);
    uint64_t n_with = 0;
    for (int i = 0; i < 400; i++) token(g, 1100 + i % 7, 1000 + i % 5, &n_with);
    CHECK(g.paused());
    CHECK(n_with < 200);
    for (int i = 0; i < 4000; i++) token(g, 900 + i % 7, 1000 + i % 5, &n_with); // another machine now
    CHECK(!g.paused());
}

void what_pays_goes_on_and_is_checked_now_and_then() {
    Governor g(PrefetchMode::automatic);
    uint64_t n_with = 0;
    for (int i = 0; i < 1000; i++) token(g, 900 + i % 50, 1000 + i % 50, &n_with);
    CHECK(!g.paused());
    CHECK(n_with > 900 && n_with < 1000);
    Governor off(PrefetchMode::off), on(PrefetchMode::on);
    for (int i = 0; i < 100; i++) {
        CHECK(!off.reads_ahead(1) && !off.reads_ahead(32));
        CHECK(on.reads_ahead(1));
    }
}

// Three times the bytes for nothing measurable: stopped. For a gain that can be measured: goes on.
void bytes_that_gain_nothing_are_not_read() {
    auto const run = [](uint64_t with_ns, uint64_t with_bytes) {
        Governor g(PrefetchMode::automatic);
        for (uint64_t i = 0; i < 1000; i++) {
            bool const ahead = g.reads_ahead(1);
            g.end_token((ahead ? with_ns : 1000) + i * 7919 % 50, 500, ahead ? with_bytes : 1000);
        }
        return g.paused();
    };
    CHECK(run(995, 3000));  // half a percent faster
    CHECK(!run(995, 1000)); // for the same bytes
    CHECK(!run(900, 3000)); // ten percent faster
    CHECK(run(1050, 1000)); // slower
}

void a_busy_drive_wants_surer_guesses() {
    Governor g(PrefetchMode::on);
    for (int i = 0; i < 100; i++) {
        (void)g.reads_ahead(1);
        g.end_token(1000, 990, 0);
    }
    float const busy = g.threshold();
    for (int i = 0; i < 100; i++) {
        (void)g.reads_ahead(1);
        g.end_token(1000, 100, 0);
    }
    CHECK(g.threshold() < busy);
    for (int i = 0; i < 100; i++) g.at_layer(0, true);
    CHECK_EQ(g.depth(), k_max_depth);
    for (int i = 0; i < 200; i++) g.at_layer(9, false);
    CHECK_EQ(g.depth(), 1u);
}

// One layer, two slots, the classic sequence 1 2 3 1 2 3: LRU never hits, Belady hits every other time.
void replay_knows_the_classics() {
    PolicyShape const shape{{0, 4}, 1};
    std::vector<RecordedVisit> visits;
    std::vector<Use> uses;
    for (uint32_t i = 0; i < 30; i++) {
        visits.push_back(RecordedVisit{0, 1, uses.size(), 1});
        uses.push_back(Use{i % 3, 1, 1.0f});
    }
    CHECK_EQ(replay(shape, visits, uses, PolicyKind::lru, 2, false, 0).n_miss, 30u);
    CHECK_EQ(replay(shape, visits, uses, PolicyKind::lru, 3, false, 0).n_miss, 3u);
    ReplayResult const best = replay_belady(shape, visits, uses, 2, 0);
    CHECK_EQ(best.n_use, 30u);
    CHECK(best.n_miss >= 15 && best.n_miss <= 17);
    CHECK_EQ(replay_belady(shape, visits, uses, 3, 10).n_miss, 0u);
    CHECK_EQ(replay_belady(shape, visits, uses, 3, 10).n_use, 20u);
}

void per_layer_slots_are_no_others() {
    PolicyShape const shape{{0, 2, 4}, 1};
    std::vector<RecordedVisit> visits;
    std::vector<Use> uses;
    for (uint32_t i = 0; i < 20; i++) { // layer 0 changes, layer 1 does not
        visits.push_back(RecordedVisit{0, 1, uses.size(), 1});
        uses.push_back(Use{i % 2, 1, 1.0f});
        visits.push_back(RecordedVisit{1, 1, uses.size(), 1});
        uses.push_back(Use{2, 1, 1.0f});
    }
    CHECK_EQ(replay(shape, visits, uses, PolicyKind::lru, 2, true, 0).n_miss, 21u);
    CHECK_EQ(replay(shape, visits, uses, PolicyKind::lru, 3, false, 0).n_miss, 3u);
}

Layout layout_of(const std::vector<std::vector<Slice>> &experts) {
    Layout layout;
    layout.n_expert_used = 1;
    layout.n_expert_total = static_cast<uint32_t>(experts.size());
    ExpertLayer layer;
    layer.n_expert = layout.n_expert_total;
    layer.matrices.resize(experts[0].size());
    for (auto const &e : experts) layer.slices.insert(layer.slices.end(), e.begin(), e.end());
    layout.layers.push_back(layer);
    return layout;
}

void neighbours_in_a_file_become_one_read() {
    Layout layout = layout_of({{{4096, 1000, 0, 0}, {5096, 1000, 0, 0}, {6096, 1000, 0, 0}}, // one after the other
                               {{100, 1000, 0, 0}, {1u << 20, 1000, 0, 0}, {2u << 20, 1000, 0, 0}}, // far apart
                               {{4096, 1000, 0, 0}, {5096, 1000, 1, 0}, {6096, 1000, 1, 0}}});      // another file
    place_experts(&layout, 512);
    ExpertLayer const &layer = layout.layers[0];
    CHECK_EQ(layer.places[0].n_piece, 1u);
    CHECK_EQ(layer.places[1].n_piece, 3u);
    CHECK_EQ(layer.places[2].n_piece, 2u);
    Piece const &whole = layer.pieces[0];
    CHECK_EQ(whole.offset, 4096u);
    CHECK_EQ(whole.need, 3000u);
    CHECK_EQ(whole.bytes, 3072u);
    CHECK_EQ(whole.matrices, 7);
    CHECK_EQ(layer.places[0].at[1], 1000u);
    CHECK_EQ(layer.places[0].at[2], 2000u);
    CHECK_EQ(layer.places[1].at[0], 100u); // the read begins at 0
    for (Place const &p : layer.places)
        for (uint32_t i = 0; i < p.n_piece; i++) {
            Piece const &piece = layer.pieces[p.first_piece + i];
            CHECK_EQ(piece.offset % 512, 0u);
            CHECK_EQ(piece.slot_offset % 512, 0u);
            CHECK(piece.slot_offset + piece.bytes <= p.slot_bytes);
        }
}

void many_sizes_become_a_few_classes() {
    std::vector<std::vector<Slice>> experts;
    uint64_t offset = 0;
    for (uint32_t e = 0; e < 40; e++) {
        uint32_t const bytes = 100000 + 40000 * (e % 20);
        experts.push_back({{offset, bytes, 0, 0}});
        offset += bytes;
    }
    Layout layout = layout_of(experts);
    place_experts(&layout, 4096);
    SlotClasses const classes = slot_classes(layout);
    CHECK_EQ(classes.classes.size(), k_max_class);
    uint64_t wanted = 0;
    for (uint32_t e = 0; e < 40; e++) {
        uint64_t const own = layout.layers[0].places[e].slot_bytes;
        CHECK(classes.classes[classes.class_of[e]].slot_bytes >= own);
        wanted += own;
    }
    CHECK(classes.max_bytes() < wanted * 112 / 100);
    CHECK_EQ(classes.classes.back().n_min, 4u);
    CHECK_EQ(classes.min_bytes(), 4 * classes.classes.back().slot_bytes);
}

void what_a_gpu_holds_takes_no_slots() {
    std::vector<std::vector<Slice>> experts;
    for (uint32_t e = 0; e < 8; e++) experts.push_back({{200000ull * e, e < 4 ? 100000u : 200000u, 0, 0}});
    Layout layout = layout_of(experts);
    ExpertLayer larger = layout.layers[0]; // two layers of four, the second with larger experts
    layout.layers[0].n_expert = larger.n_expert = 4;
    layout.layers[0].slices.resize(4);
    larger.slices.erase(larger.slices.begin(), larger.slices.begin() + 4);
    larger.first = 4;
    larger.layer++;
    layout.layers.push_back(larger);
    place_experts(&layout, 512);
    SlotClasses const all = slot_classes(layout);
    SlotClasses const first = slot_classes(layout, {0, 0, 0, 0, 1, 1, 1, 1});
    CHECK_EQ(all.classes.size(), 2u);
    CHECK_EQ(first.classes.size(), 1u);
    CHECK_EQ(first.max_bytes(), 4 * layout.layers[0].places[3].slot_bytes);
    SlotClasses const some = slot_classes(layout, {0, 1, 1, 1, 1, 1, 1, 1});
    CHECK_EQ(some.max_bytes(), layout.layers[0].places[0].slot_bytes);
    CHECK_EQ(some.min_bytes(), some.max_bytes());
    CHECK_EQ(slot_classes(layout, std::vector<uint8_t>(8, 1)).max_bytes(), all.max_bytes());
}

void rows_of_a_gpu_are_left_out() {
    RoutingGroups groups(4);
    int32_t const ids[] = {0, 2, 3, 0, 2, 9}; // three tokens, two ranks; 9 routes nowhere
    float const weights[] = {0.25f, 0.75f, 0.5f, 0.5f, 1.0f, 0.0f};
    Routing r;
    r.ids = reinterpret_cast<const uint8_t *>(ids);
    r.n_token = 3;
    r.n_rank = 2;
    r.token_stride = 8;
    r.rank_stride = 4;
    r.weights = weights;
    uint8_t const on_gpu[] = {0, 0, 1, 0};
    groups.group(r, 4, on_gpu);
    CHECK_EQ(groups.experts.size(), 2u); // 0 and 3
    CHECK_EQ(groups.rows.size(), 3u);
    CHECK_EQ(groups.gpu_experts.size(), 1u);
    CHECK_EQ(groups.gpu_experts[0].n_row, 2u);
    CHECK(groups.gpu_experts[0].weight == 0.875f);
    CHECK_EQ(groups.gpu_rows.size(), 2u);
    CHECK_EQ(groups.gpu_rows[1].token, 2u);
    CHECK_EQ(groups.gpu_rows[1].rank, 0u);
    groups.group(r, 4, nullptr); // the same groups again, without a GPU
    CHECK_EQ(groups.experts.size(), 3u);
    CHECK(groups.gpu_rows.empty());
    CHECK_EQ(groups.rows.size(), 5u);
}

} // namespace

int main() {
    guesses_are_right_and_probabilities_true();
    what_is_always_used_is_learned_against_the_router();
    what_does_not_pay_is_stopped_and_tried_again();
    what_pays_goes_on_and_is_checked_now_and_then();
    bytes_that_gain_nothing_are_not_read();
    a_busy_drive_wants_surer_guesses();
    replay_knows_the_classics();
    per_layer_slots_are_no_others();
    neighbours_in_a_file_become_one_read();
    many_sizes_become_a_few_classes();
    what_a_gpu_holds_takes_no_slots();
    rows_of_a_gpu_are_left_out();
    return g_failures;
}
