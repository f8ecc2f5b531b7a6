// Visits and products on a file of known bytes, with threads: the weights handed out are the expert's own, under
// every cache size, through eviction, streaming, faults, cancellation and budgets that change meanwhile.
#include "base/error.h"
#include "pipeline/product.h"

#include "check.h"

#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <unistd.h>

using namespace emoe;

namespace {

constexpr uint32_t k_n_layer = 3;
constexpr uint32_t k_n_expert = 8;
constexpr uint32_t k_n_used = 2;
constexpr uint32_t k_bytes[3] = {1000, 1000, 2300}; // odd sizes: slices begin anywhere
constexpr uint32_t k_n_thread = 3;

char byte_of(uint32_t layer, uint32_t expert, uint32_t matrix, uint32_t i) {
    return static_cast<char>(layer * 101 + expert * 31 + matrix * 7 + i * 3);
}

struct TestModel {
    char path[64];
    Layout layout;
    TestModel() {
        strcpy(path, "streamer_test.XXXXXX");
        int const fd = mkstemp(path);
        std::string content(77, 'h');
        layout.paths = {path};
        layout.n_expert_used = k_n_used;
        for (uint32_t l = 0; l < k_n_layer; l++) {
            ExpertLayer layer;
            layer.layer = l;
            layer.n_expert = k_n_expert;
            layer.first = layout.n_expert_total;
            layer.matrices.resize(3);
            layer.slices.resize(k_n_expert * 3);
            for (uint32_t m = 0; m < 3; m++) {
                layer.matrices[m].n_col = k_bytes[m];
                layer.matrices[m].n_row = 1;
                for (uint32_t e = 0; e < k_n_expert; e++) {
                    Slice &s = layer.slices[e * 3 + m];
                    s.offset = content.size();
                    s.bytes = k_bytes[m];
                    for (uint32_t i = 0; i < k_bytes[m]; i++) content += byte_of(l, e, m, i);
                }
            }
            layout.n_expert_total += k_n_expert;
            layout.layers.push_back(layer);
        }
        if (write(fd, content.data(), content.size()) != static_cast<ssize_t>(content.size())) abort();
        close(fd);
    }
    ~TestModel() { unlink(path); }
};

// Checks the weights of every (expert, chunk) instead of multiplying; counts the rows that were computed.
class CheckingWork final : public ProductWork {
public:
    CheckingWork(Streamer &s, uint32_t layer, uint32_t matrix, const std::vector<int32_t> &ids)
        : streamer_(s), layer_(layer), matrix_(matrix), ids_(ids) {
        n_prepare = 5;
        n_chunk = 2;
    }
    bool plan(uint32_t) override {
        Routing r;
        r.ids = reinterpret_cast<const uint8_t *>(ids_.data());
        r.n_rank = k_n_used;
        r.n_token = static_cast<uint32_t>(ids_.size()) / k_n_used;
        r.rank_stride = 4;
        r.token_stride = 4 * k_n_used;
        return streamer_.begin_product(layer_, matrix_, r);
    }
    void prepare(uint32_t) override { n_prepared++; }
    void compute(uint32_t index, uint32_t chunk, uint32_t) override {
        VisitExpert const &e = streamer_.expert(index);
        const uint8_t *w = streamer_.weights(index);
        for (uint32_t i = chunk * k_bytes[matrix_] / 2; i < (chunk + 1) * k_bytes[matrix_] / 2; i++)
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
};

// One graph: all products of all layers, each met by all threads. False when the visit failed.
bool compute_graph(Streamer &s, uint32_t n_token, std::mt19937 &random, bool expect_complete = true) {
    s.begin_batch();
    for (uint32_t l = 0; l < k_n_layer && !s.failed(); l++) {
        std::vector<int32_t> ids;
        for (uint32_t t = 0; t < n_token; t++) {
            auto const a = static_cast<int32_t>(random() % k_n_expert);
            ids.push_back(a);
            ids.push_back((a + 1 + static_cast<int32_t>(random() % (k_n_expert - 1))) % k_n_expert);
        }
        for (uint32_t m = 0; m < 3 && !s.failed(); m++) {
            Product product(s);
            CheckingWork work(s, l, m, ids);
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

Streamer::Params params(uint64_t cache_bytes) {
    Streamer::Params p;
    p.cache_bytes = cache_bytes;
    p.reader.kind = g_kind;
    p.reader.n_lane = 2;
    return p;
}

void weights_are_right_at_every_cache_size() {
    TestModel const model;
    Streamer const probe(model.layout, params(1 << 20));
    uint64_t const slot = probe.layout().layers[0].slot_bytes;
    for (uint32_t n_slot = 4; n_slot <= k_n_layer * k_n_expert; n_slot += 5) {
        Streamer s(model.layout, params(slot * n_slot));
        std::mt19937 random(n_slot);
        for (uint32_t i = 0; i < 20; i++) CHECK(compute_graph(s, i % 5 == 4 ? 30 : 1, random));
        StreamerStats const st = s.stats();
        CHECK_EQ(st.n_slot, n_slot);
        CHECK(st.n_miss > 0);
        CHECK(st.n_hit > 0 || n_slot == 4); // four slots are less than one token's experts
        CHECK((st.n_evict > 0) == (n_slot < k_n_layer * k_n_expert));
        CHECK((st.n_streamed > 0) == (n_slot < k_n_expert)); // 30 tokens use all experts of a layer
    }
}

void each_byte_is_read_once_when_everything_fits() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 20));
    std::mt19937 random(1);
    for (uint32_t i = 0; i < 10; i++) CHECK(compute_graph(s, 40, random));
    CHECK_EQ(s.stats().n_read, uint64_t{k_n_layer} * k_n_expert * 3);
    CHECK_EQ(s.stats().n_evict, 0u);
}

void a_streamed_visit_reads_each_expert_once() {
    TestModel const model;
    Streamer const probe(model.layout, params(1 << 20));
    Streamer s(model.layout, params(probe.layout().layers[0].slot_bytes * 4));
    std::mt19937 random(2);
    CHECK(compute_graph(s, 60, random));
    CHECK_EQ(s.stats().n_read, uint64_t{k_n_layer} * k_n_expert * 3);
    CHECK_EQ(s.stats().n_streamed, uint64_t{k_n_layer} * k_n_expert);
}

void after_any_failed_read_the_next_graph_is_right(uint32_t kind, bool is_error, uint32_t n_token) {
    TestModel const model;
    Streamer const probe(model.layout, params(1 << 20));
    Streamer s(model.layout, params(probe.layout().layers[0].slot_bytes * 5));
    std::mt19937 random(3);
    uint32_t n_failed = 0;
    for (uint64_t n = 0; n < 40; n++) {
        s.faults().kind = kind;
        s.faults().countdown = n % 11;
        bool const ok = compute_graph(s, n_token, random);
        n_failed += ok ? 0 : 1;
        if (!ok) CHECK(!s.failure().empty());
        s.faults().countdown = UINT64_MAX;
        CHECK(compute_graph(s, n_token, random));
    }
    CHECK_EQ(n_failed > 20, is_error);
    if (!is_error) CHECK_EQ(n_failed, 0u);
}

void cancelling_ends_a_graph_and_nothing_else() {
    TestModel const model;
    Streamer::Params p = params(1 << 20);
    p.reader.bytes_per_s = 200000; // slow enough to be caught in the middle
    Streamer s(model.layout, p);
    std::mt19937 random(4);
    s.fail_visit("nothing is under way"); // no effect
    std::thread other([&s] {
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
        s.fail_visit("cancelled");
    });
    CHECK(!compute_graph(s, 30, random));
    other.join();
    CHECK(compute_graph(s, 1, random));
}

void budgets_change_while_computing() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 20));
    uint64_t const slot = s.layout().layers[0].slot_bytes;
    std::atomic<bool> stop{false};
    std::thread other([&] {
        std::mt19937 random(5);
        while (!stop) {
            s.set_cache_bytes(slot * (4 + random() % 21));
            (void)s.stats();
            (void)s.resident(1);
            std::this_thread::sleep_for(std::chrono::microseconds(200));
        }
    });
    std::mt19937 random(6);
    for (uint32_t i = 0; i < 60; i++) CHECK(compute_graph(s, i % 7 == 0 ? 20 : 1, random));
    stop = true;
    other.join();
    CHECK(s.stats().n_evict > 0);
    s.set_cache_bytes(slot * 6);
    CHECK_EQ(s.stats().n_slot, 6u);
    CHECK(s.stats().n_slot_used <= 6u);
}

void too_small_a_cache_is_refused() {
    TestModel const model;
    Streamer s(model.layout, params(1 << 20));
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
    Streamer s(model.layout, params(1 << 20));
    Product product(s);
    CHECK(product.arm());
    CHECK(!product.arm());
}

void everything() {
    weights_are_right_at_every_cache_size();
    each_byte_is_read_once_when_everything_fits();
    a_streamed_visit_reads_each_expert_once();
    for (uint32_t n_token : {1u, 30u}) {
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_FAIL, true, n_token);
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_TRUNCATE, true, n_token);
        after_any_failed_read_the_next_graph_is_right(EMOE_FAULT_SHORT, false, n_token);
    }
    budgets_change_while_computing();
}

bool has_uring() {
    class Nobody final : public ReadSink {
        void on_read(uint64_t, const std::string &) override {}
    } nobody;
    FaultPlan faults;
    return make_uring_reader(ReaderParams{}, faults, nobody) != nullptr;
}

} // namespace

int main() {
    everything();
    if (has_uring()) {
        g_kind = ReaderKind::uring;
        everything();
    }
    g_kind = ReaderKind::threads;
    cancelling_ends_a_graph_and_nothing_else();
    too_small_a_cache_is_refused();
    the_same_weights_twice_in_a_graph_are_noticed();
    return g_failures;
}
