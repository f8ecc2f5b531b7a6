// Visits and products on a file of known bytes, with threads: the weights handed out are the expert's own, under
// every cache size, through eviction, streaming, faults, cancellation and budgets that change meanwhile.
#include "base/error.h"
#include "pipeline/product.h"

#include "check.h"
#include "temporary.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>

using namespace emoe;

namespace {

constexpr uint32_t k_n_layer = 3;
constexpr uint32_t k_n_expert = 8;
constexpr uint32_t k_n_used = 2;
constexpr uint32_t k_bytes[3] = {1000, 1000, 2300}; // odd sizes: slices begin anywhere
constexpr uint32_t k_n_thread = 3;
constexpr uint32_t k_n_embd = 16;

// How the experts lie in the file.
enum class Form {
    split,      // matrix by matrix, as in an ordinary GGUF
    contiguous, // expert by expert, their sizes mixed
};
Form g_form = Form::split;

uint32_t bytes_of(uint32_t expert, uint32_t matrix) {
    return g_form == Form::split ? k_bytes[matrix] : k_bytes[matrix] * (1 + 20 * (expert % 3));
}

char byte_of(uint32_t layer, uint32_t expert, uint32_t matrix, uint32_t i) {
    return static_cast<char>(layer * 101 + expert * 31 + matrix * 7 + i * 3);
}

struct TestModel {
    Layout layout;
    std::unique_ptr<TemporaryFile> file;
    TestModel() {
        std::string content(77, 'h');
        layout.n_expert_used = k_n_used;
        for (uint32_t l = 0; l < k_n_layer; l++) {
            ExpertLayer layer;
            layer.layer = l;
            layer.n_expert = k_n_expert;
            layer.first = layout.n_expert_total;
            layer.matrices.resize(3);
            layer.slices.resize(k_n_expert * 3);
            for (uint32_t i = 0; i < 3 * k_n_expert; i++) {
                uint32_t const m = g_form == Form::split ? i / k_n_expert : i % 3;
                uint32_t const e = g_form == Form::split ? i % k_n_expert : i / 3;
                Slice &s = layer.slices[e * 3 + m];
                s.offset = content.size();
                s.bytes = bytes_of(e, m);
                for (uint32_t j = 0; j < s.bytes; j++) content += byte_of(l, e, m, j);
                if (g_form == Form::contiguous && m == 2) content.resize((content.size() + 4095) / 4096 * 4096);
            }
            layout.n_expert_total += k_n_expert;
            layout.layers.push_back(layer);
        }
        file = std::make_unique<TemporaryFile>(content);
        layout.paths = {file->path};
    }
};

// Checks the weights of every (expert, chunk) instead of multiplying; counts the rows that were computed.
class CheckingWork final : public ProductWork {
public:
    CheckingWork(Streamer &s, uint32_t layer, uint32_t matrix, const std::vector<int32_t> &ids, const float *input)
        : streamer_(s), layer_(layer), matrix_(matrix), ids_(ids), input_(input) {
        n_prepare = 5;
        n_chunk = 2;
    }
    bool begin(uint32_t) override {
        Routing &r = routing_;
        r.ids = reinterpret_cast<const uint8_t *>(ids_.data());
        r.n_rank = k_n_used;
        r.n_token = static_cast<uint32_t>(ids_.size()) / k_n_used;
        r.rank_stride = 4;
        r.token_stride = 4 * k_n_used;
        if (r.n_token == 1) r.input = input_;
        return streamer_.begin_product(layer_, matrix_, r);
    }
    void look_ahead() override { streamer_.look_ahead(routing_); }
    void prepare(uint32_t) override { n_prepared++; }
    void compute(uint32_t index, uint32_t chunk, uint32_t) override {
        VisitExpert const &e = streamer_.expert(index);
        const uint8_t *w = streamer_.weights(index);
        uint32_t const bytes = bytes_of(e.expert, matrix_);
        for (uint32_t i = chunk * bytes / 2; i < (chunk + 1) * bytes / 2; i++)
            if (static_cast<char>(w[i]) != byte_of(layer_, e.expert, matrix_, i)) n_wrong++;
        for (uint32_t r = 0; r < e.n_row; r++) {
            Row const row = streamer_.rows()[e.first_row + r];
            if (ids_[row.token * k_n_used + row.rank] != static_cast<int32_t>(e.expert)) n_wrong++;
        }
        n_row += e.n_row;
    }
    std::atomic<uint32_t> n_prepared{0}, n_row{0}, n_wrong{0};

private:
    Streamer &streamer_;
    uint32_t layer_, matrix_;
    const std::vector<int32_t> &ids_;
    const float *input_;
    Routing routing_;
};

// Routers of fixed pseudo-random rows, the same for every layer: what one layer chooses, the next does too.
std::vector<float> router_rows() {
    std::mt19937 random(99);
    std::vector<float> rows(k_n_expert * k_n_embd);
    for (float &x : rows) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    return rows;
}

// The two experts that a router chooses.
void choose(const std::vector<float> &rows, const float *input, std::vector<int32_t> *ids) {
    float score[k_n_expert] = {};
    for (uint32_t e = 0; e < k_n_expert; e++)
        for (uint32_t i = 0; i < k_n_embd; i++) score[e] += rows[e * k_n_embd + i] * input[i];
    for (uint32_t k = 0; k < k_n_used; k++) {
        auto const best = static_cast<int32_t>(std::max_element(score, score + k_n_expert) - score);
        ids->push_back(best);
        score[best] = -1e9f;
    }
}

enum class Guesses { right, wrong }; // of the routers: right is what they choose, wrong is chance

// What llama.cpp would multiply by.
void check_whole(const WholeLayer &whole, uint32_t layer) {
    uint32_t n_wrong = 0;
    for (uint32_t e = 0; e < k_n_expert; e++)
        for (uint32_t m = 0; m < 3; m++)
            for (uint32_t i = 0; i < bytes_of(e, m); i++)
                n_wrong += static_cast<char>(whole.at[m][e * whole.stride + i]) != byte_of(layer, e, m, i) ? 1 : 0;
    CHECK_EQ(n_wrong, 0u);
}

// One graph: all products of all layers, each met by all threads. False when the visit failed.
bool compute_graph(Streamer &s, uint32_t n_token, std::mt19937 &random, bool expect_complete = true,
                   Guesses guesses = Guesses::wrong) {
    std::vector<float> const rows = router_rows();
    s.begin_batch(n_token);
    s.begin_graph();
    float input[k_n_embd];
    for (float &x : input) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    for (uint32_t l = 0; l < k_n_layer && !s.failed(); l++) {
        std::vector<int32_t> ids;
        if (guesses == Guesses::right) choose(rows, input, &ids);
        for (uint32_t t = 0; t < n_token && guesses == Guesses::wrong; t++) {
            auto const a = static_cast<int32_t>(random() % k_n_expert);
            ids.push_back(a);
            ids.push_back((a + 1 + static_cast<int32_t>(random() % (k_n_expert - 1))) % k_n_expert);
        }
        if (WholeLayer const *whole = s.whole(l)) {
            check_whole(*whole, l);
            s.count_whole(l, ids.size());
            continue;
        }
        for (uint32_t m = 0; m < 3 && !s.failed(); m++) {
            Product product(s);
            CheckingWork work(s, l, m, ids, input);
            CHECK(product.arm());
            std::vector<std::thread> threads;
            for (uint32_t t = 0; t < k_n_thread; t++)
                threads.emplace_back([&, t] { product.run(t, k_n_thread, work); });
            for (std::thread &t : threads) t.join();
            CHECK_EQ(work.n_wrong.load(), 0u);
            if (!s.failed() && expect_complete) {
                CHECK_EQ(work.n_row.load(), n_token * k_n_used * work.n_chunk);
                CHECK_EQ(work.n_prepared.load(), work.n_prepare);
            }
        }
    }
    bool const ok = !s.failed();
    s.end_batch();
    return ok;
}

ReaderKind g_kind = ReaderKind::threads;
PrefetchMode g_prefetch = PrefetchMode::off;

Streamer::Params params(uint64_t cache_bytes) {
    Streamer::Params p;
    p.cache_bytes = cache_bytes;
    p.reader.kind = g_kind;
    p.reader.n_lane = 2;
    p.prefetch = g_prefetch;
    p.n_embd = k_n_embd;
    return p;
}

void give_routers(Streamer &s) {
    std::vector<float> const rows = router_rows();
    for (uint32_t l = 0; l < k_n_layer; l++) s.set_router(l, rows.data(), nullptr);
}

// Of the largest class: what all classes together need at least for `n` experts.
uint64_t bytes_for(uint32_t n) {
    TestModel const model;
    Layout layout = model.layout;
    // As the streamer's: of the file's own file system, 4096 where the kernel does not tell (qemu's does not).
    place_experts(&layout, std::max(512u, File(model.file->path, FileAccess::direct).alignment()));
    SlotClasses const classes = slot_classes(layout);
    return classes.classes.back().slot_bytes * n;
}

void weights_are_right_at_every_cache_size() {
    TestModel const model;
    for (uint32_t n_slot = 4; n_slot <= k_n_layer * k_n_expert; n_slot += 5) {
        Streamer s(model.layout, params(bytes_for(n_slot)));
        give_routers(s);
        std::mt19937 random(n_slot);
        for (uint32_t i = 0; i < 10; i++) CHECK(compute_graph(s, i % 5 == 4 ? 30 : 1, random));
        StreamerStats const st = s.stats();
        CHECK(st.n_miss > 0);
        if (g_form == Form::split) CHECK_EQ(st.n_slot, n_slot);
        if (g_form == Form::split && g_prefetch == PrefetchMode::off) {
            CHECK(st.n_hit > 0 || n_slot == 4); // four slots are less than one token's experts
            CHECK((st.n_evict > 0) == (n_slot < k_n_layer * k_n_expert));
            CHECK((st.n_streamed > 0) == (n_slot < k_n_expert)); // 30 tokens use all experts of a layer
        }
        if (g_prefetch == PrefetchMode::off) CHECK_EQ(st.n_prefetch, 0u);
        if (g_prefetch == PrefetchMode::on && n_slot >= 9) CHECK(st.n_prefetch > 0);
    }
}

uint32_t n_whole(Streamer &s) {
    uint32_t n = 0;
    for (uint32_t l = 0; l < k_n_layer; l++) n += s.whole(l) ? 1 : 0;
    return n;
}

void what_is_whole_is_left_to_llama_until_the_cache_shrinks() {
    TestModel const model;
    uint32_t const n_all = k_n_layer * k_n_expert;
    Streamer s(model.layout, params(bytes_for(n_all / 2)));
    std::mt19937 random(5);
    for (uint32_t i = 0; i < 4; i++) CHECK(compute_graph(s, 30, random)); // experts lie anywhere
    CHECK_EQ(n_whole(s), 0u);
    s.set_cache_bytes(bytes_for(n_all));
    for (uint32_t i = 0; i < 3; i++) CHECK(compute_graph(s, 30, random));
    // Experts of several sizes have no stride.
    CHECK_EQ(n_whole(s), g_form == Form::split ? k_n_layer : 0);
    StreamerStats const before = s.stats();
    CHECK(compute_graph(s, 1, random));
    StreamerStats const after = s.stats();
    CHECK_EQ(after.n_hit - before.n_hit, k_n_layer * k_n_used);
    CHECK_EQ(after.read_bytes, before.read_bytes);
    CHECK(s.same_as_files());
    if (g_form == Form::split) {
        CHECK(!s.expert_states(0).empty()); // somebody looks
        CHECK(compute_graph(s, 1, random));
        CHECK_EQ(n_whole(s), 0u);
        for (uint32_t i = 0; i < 70; i++) CHECK(compute_graph(s, 1, random));
        CHECK_EQ(n_whole(s), k_n_layer);
    }
    s.set_cache_bytes(bytes_for(n_all - 2));
    CHECK(compute_graph(s, 1, random));
    CHECK_EQ(n_whole(s), 0u);
    CHECK_EQ(s.stats().n_slot_used, g_form == Form::split ? n_all - 2 : s.stats().n_slot_used);
    for (uint32_t i = 0; i < 4; i++) CHECK(compute_graph(s, i % 2 ? 30 : 1, random));
    CHECK(s.same_as_files());
}

// Three layers that choose alike, and room for a third of the experts: what is read ahead is used.
void right_guesses_are_read_ahead_and_used() {
    TestModel const model;
    Streamer::Params p = params(bytes_for(g_form == Form::split ? 12 : 10));
    p.prefetch = PrefetchMode::on;
    Streamer s(model.layout, p);
    give_routers(s);
    std::mt19937 random(11);
    for (uint32_t i = 0; i < 120; i++) CHECK(compute_graph(s, 1, random, true, Guesses::right));
    StreamerStats const st = s.stats();
    CHECK(st.n_prefetch > 20);
    CHECK(st.n_prefetch_used * 2 > st.n_prefetch);
    Accuracy const a = s.accuracy(2);
    CHECK(a.n_used[0] > 100);
    CHECK(a.n_found[0] * 10 > a.n_used[0] * 8);
    uint32_t n_used = 0;
    for (uint8_t state : s.expert_states(1)) n_used += (state & k_state_used) != 0 ? 1 : 0;
    CHECK_EQ(n_used, k_n_used);
}

// What the governor compares are the reader's bytes, all but those that the last token left under way.
void the_bytes_of_every_token_are_compared() {
    TestModel const model;
    Streamer s(model.layout, params(bytes_for(g_form == Form::split ? 12 : 10)));
    give_routers(s);
    std::mt19937 random(14);
    constexpr uint32_t n_token = 40;
    for (uint32_t i = 0; i < n_token; i++) CHECK(compute_graph(s, 1, random, true, Guesses::right));
    StreamerStats const st = s.stats();
    double const mean_bytes = g_prefetch == PrefetchMode::off ? st.without_bytes : st.with_bytes;
    auto const compared = static_cast<uint64_t>(std::llround(mean_bytes * n_token));
    CHECK(compared > 0 && compared <= st.read_bytes);
    if (g_prefetch == PrefetchMode::off) CHECK_EQ(compared, st.read_bytes);
}

void a_next_layer_is_read_ahead_of_a_batch() {
    TestModel const model;
    Streamer::Params p = params(bytes_for(g_form == Form::split ? 20 : 10));
    p.prefetch = PrefetchMode::on;
    Streamer s(model.layout, p);
    std::mt19937 random(12);
    for (uint32_t i = 0; i < 6; i++) CHECK(compute_graph(s, 60, random));
    CHECK(s.stats().n_prefetch > 0);
    CHECK(s.stats().n_prefetch_used > 0);
}

void each_byte_is_read_once_when_everything_fits() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 23));
    std::mt19937 random(1);
    for (uint32_t i = 0; i < 10; i++) CHECK(compute_graph(s, 40, random));
    CHECK_EQ(s.stats().n_read, uint64_t{k_n_layer} * k_n_expert * (g_form == Form::split ? 3 : 1));
    CHECK_EQ(s.stats().n_evict, 0u);
}

void a_streamed_visit_reads_each_expert_once() {
    TestModel const model;
    Streamer s(model.layout, params(bytes_for(4)));
    std::mt19937 random(2);
    CHECK(compute_graph(s, 60, random));
    CHECK_EQ(s.stats().n_read, uint64_t{k_n_layer} * k_n_expert * 3);
    CHECK_EQ(s.stats().n_streamed, uint64_t{k_n_layer} * k_n_expert);
}

void after_any_failed_read_the_next_graph_is_right(uint32_t kind, bool is_error, uint32_t n_token) {
    TestModel const model;
    Streamer s(model.layout, params(bytes_for(5)));
    give_routers(s);
    std::mt19937 random(3);
    uint32_t n_failed = 0;
    for (uint64_t n = 0; n < 14; n++) {
        s.faults().kind = kind;
        s.faults().countdown = n % 11;
        bool const ok = compute_graph(s, n_token, random);
        n_failed += ok ? 0 : 1;
        if (!ok) CHECK_EQ(s.failure().status, EMOE_ERR_IO);
        s.faults().countdown = UINT64_MAX;
        CHECK(compute_graph(s, n_token, random));
    }
    // A read ahead that goes wrong is nobody's failure.
    CHECK_EQ(n_failed > (g_prefetch == PrefetchMode::off ? 7u : 1u), is_error);
    if (!is_error) CHECK_EQ(n_failed, 0u);
}

// A system call of the reader that fails is one graph's failure, and no graph waits for what was never begun.
void after_any_refused_call_the_next_graph_is_right(uint32_t n_token) {
    TestModel const model;
    Streamer s(model.layout, params(bytes_for(5)));
    give_routers(s);
    std::mt19937 random(13);
    uint32_t n_failed = 0;
    for (uint64_t n = 0; n < 24; n++) {
        s.faults().enter_error = EPERM;
        s.faults().enter_stays = n % 2 == 1;
        s.faults().enter_countdown = n / 2;
        bool const ok = compute_graph(s, n_token, random);
        n_failed += ok ? 0 : 1;
        if (!ok) CHECK_EQ(s.failure().status, EMOE_ERR_IO);
        s.faults().enter_countdown = UINT64_MAX;
        CHECK(compute_graph(s, n_token, random));
    }
    CHECK(n_failed > 2);
}

void cancelling_ends_a_graph_and_nothing_else() {
    TestModel const model;
    Streamer::Params p = params(1 << 23);
    p.reader.bytes_per_s = 200000; // slow enough to be caught in the middle
    Streamer s(model.layout, p);
    std::mt19937 random(4);
    s.fail_visit({EMOE_ERR_CANCELLED, "nothing is under way"}); // no effect
    std::thread other([&s] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        s.fail_visit({EMOE_ERR_CANCELLED, "cancelled"});
    });
    CHECK(!compute_graph(s, 30, random));
    CHECK_EQ(s.failure().status, EMOE_ERR_CANCELLED);
    other.join();
    CHECK(compute_graph(s, 1, random));
}

void budgets_change_while_computing() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 23));
    uint64_t const slot = bytes_for(1);
    give_routers(s);
    std::atomic<bool> stop{false};
    std::thread other([&] {
        std::mt19937 random(5);
        while (!stop) {
            s.set_cache_bytes(slot * (4 + random() % 21));
            (void)s.stats();
            (void)s.n_cached(1);
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    });
    std::mt19937 random(6);
    for (uint32_t i = 0; i < 30; i++) CHECK(compute_graph(s, i % 7 == 0 ? 20 : 1, random));
    stop = true;
    other.join();
    CHECK(s.stats().n_evict > 0);
    s.set_cache_bytes(slot * 6);
    if (g_form == Form::split) CHECK_EQ(s.stats().n_slot, 6u);
    CHECK(s.stats().cache_bytes <= slot * 6);
    CHECK(s.stats().n_slot_used <= s.stats().n_slot);
}

void too_small_a_cache_is_refused() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 23));
    bool refused = false;
    try {
        s.set_cache_bytes(1000);
    } catch (const Error &) {
        refused = true;
    }
    CHECK(refused);
}

void the_same_weights_twice_in_a_graph_are_noticed() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 23));
    Product product(s);
    CHECK(product.arm());
    CHECK(!product.arm());
}

void everything() {
    weights_are_right_at_every_cache_size();
    right_guesses_are_read_ahead_and_used();
    a_next_layer_is_read_ahead_of_a_batch();
    the_bytes_of_every_token_are_compared();
    what_is_whole_is_left_to_llama_until_the_cache_shrinks();
    if (g_prefetch == PrefetchMode::off) {
        each_byte_is_read_once_when_everything_fits();
        a_streamed_visit_reads_each_expert_once();
    }
    for (uint32_t n_token : {1u, 30u}) {
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_FAIL, true, n_token);
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_TRUNCATE, true, n_token);
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_SHORT, false, n_token);
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_INTERRUPT, false, n_token);
    }
    budgets_change_while_computing();
}

bool has_uring() {
    class Nobody final : public ReadSink {
        void on_read(uint64_t, const std::string &) override {}
    } nobody;
    Faults faults;
    return make_uring_reader(ReaderParams{}, faults, nobody) != nullptr;
}

} // namespace

int main() {
    for (Form form : {Form::split, Form::contiguous})
        for (PrefetchMode prefetch : {PrefetchMode::off, PrefetchMode::on}) {
            g_form = form;
            g_prefetch = prefetch;
            g_kind = ReaderKind::threads;
            everything();
            if (has_uring()) {
                g_kind = ReaderKind::uring;
                everything();
                for (uint32_t n_token : {1u, 30u}) after_any_refused_call_the_next_graph_is_right(n_token);
            }
        }
    g_form = Form::split;
    g_kind = ReaderKind::threads;
    g_prefetch = PrefetchMode::on;
    cancelling_ends_a_graph_and_nothing_else();
    too_small_a_cache_is_refused();
    the_same_weights_twice_in_a_graph_are_noticed();
    return g_failures;
}
