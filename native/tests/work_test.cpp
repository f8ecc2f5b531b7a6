// Real work through edgemoe.h, with all that may go on beside it: for the sanitizers, and every answer is the same.
//
//   work_test MODEL.gguf...      of any architecture; small ones, where a sanitizer watches
#include "handles.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <thread>

namespace fs = std::filesystem;

namespace {

using Logits = std::vector<float>;

constexpr uint32_t k_prompt = 45; // more than a batch
constexpr uint32_t k_answer = 6;

int32_t token_of(uint32_t i, uint32_t n_vocab) { return static_cast<int32_t>((11 + i * 37) % (n_vocab - 8)); }

emoe_setup worked() {
    emoe_setup s = shaped();
    s.n_threads = 2;
    s.n_outputs = EMOE_MAX_VERIFY;
    return s;
}

// An engine that closes itself. Where it cannot be opened, `handle` is null and the test has failed.
class Engine {
public:
    Engine(const emoe_model *model, const emoe_setup &setup, uint64_t cache_bytes) {
        GIVEN(emoe_engine_open(model, nullptr, &setup, cache_bytes, &handle, &g_err));
        if (!handle) exit(1);
        n_vocab = emoe_text_n_vocab(emoe_engine_text(handle));
    }
    ~Engine() { emoe_engine_close(handle); }
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    // The status of computing tokens from..from+n of what all tests compute, and the logits of the last.
    emoe_status decode(uint32_t from, uint32_t n, Logits *last = nullptr) const {
        emoe_error err;
        std::vector<int32_t> tokens;
        for (uint32_t i = 0; i < n; i++) tokens.push_back(token_of(from + i, n_vocab));
        emoe_status const status = emoe_engine_decode(handle, tokens.data(), n, 0, &err);
        if (status == EMOE_OK && last) *last = logits();
        if (status != EMOE_OK && err.message[0] == 0) g_failures++;
        return status;
    }
    // A prompt and an answer, from the beginning.
    Logits answer() const {
        Logits found;
        GIVEN(emoe_engine_rewind(handle, 0, &g_err));
        CHECK_EQ(decode(0, k_prompt), EMOE_OK);
        for (uint32_t i = 0; i < k_answer; i++) CHECK_EQ(decode(k_prompt + i, 1, &found), EMOE_OK);
        return found;
    }
    Logits logits(uint32_t row = 0, uint32_t sequence = 0) const {
        const float *found = emoe_text_logits(emoe_engine_sequence_text(handle, sequence), row);
        return found ? Logits(found, found + n_vocab) : Logits();
    }

    emoe_engine *handle = nullptr;
    uint32_t n_vocab = 0;
};

// Calls something again and again, from its own thread, as long as it lives.
class Beside {
public:
    template <typename Call>
    explicit Beside(const Call &call)
        : thread_([this, call] {
              for (uint32_t i = 0; !ends_; i++) call(i);
          }) {}
    ~Beside() {
        ends_ = true;
        thread_.join();
    }
    Beside(const Beside &) = delete;
    Beside &operator=(const Beside &) = delete;

private:
    std::atomic<bool> ends_{false};
    std::thread thread_;
};

// What a host asks while another thread computes.
void look(const emoe_engine *engine, uint32_t i) {
    emoe_error err;
    auto stats = zeros<emoe_stats>();
    auto accuracy = zeros<emoe_accuracy>();
    std::vector<uint8_t> states(512);
    std::vector<float> rates(4096);
    CHECK_EQ(emoe_engine_get_stats(engine, &stats, &err), EMOE_OK);
    CHECK_EQ(emoe_engine_accuracy(engine, i % 4, &accuracy, &err), EMOE_OK);
    (void)emoe_engine_experts(engine, i % 4, states.data(), static_cast<uint32_t>(states.size()));
    (void)emoe_engine_resident(engine, i % 4);
    (void)emoe_engine_rates(engine, rates.data(), rates.size());
}

struct Work {
    emoe_model *model = nullptr;
    emoe_model_info info = zeros<emoe_model_info>();
    Logits answer; // of an engine that nothing disturbs
    std::string folder;

    void every_cache_and_reader() const;
    void budgets_that_change() const;
    void cancels_and_faults() const;
    void states_and_drafts() const;
    void sequences() const;
    void samplers() const;
    void calibration_and_traces() const;
    void sessions(const char *path) const;
    void engines_at_once() const;
};

void Work::every_cache_and_reader() const {
    uint32_t n_evicting = 0;
    for (uint64_t const cache : {uint64_t{0}, info.slot_bytes / 3, info.slot_bytes * 2})
        for (uint32_t const reader : {uint32_t{EMOE_READER_THREADS}, uint32_t{EMOE_READER_AUTO}})
            for (uint32_t const policy : {uint32_t{EMOE_POLICY_NEXT_USE}, uint32_t{EMOE_POLICY_MRS}}) {
                emoe_setup setup = worked();
                setup.reader = reader;
                setup.policy = policy;
                setup.prefetch = policy == EMOE_POLICY_MRS ? EMOE_PREFETCH_OFF : EMOE_PREFETCH_ON;
                setup.row_cache_bytes = cache == 0 && info.table_bytes != 0 ? uint64_t{1} << 16 : 0;
                Engine const engine(model, setup, cache);
                CHECK(engine.answer() == answer);
                auto stats = zeros<emoe_stats>();
                GIVEN(emoe_engine_get_stats(engine.handle, &stats, &g_err));
                n_evicting += stats.n_evict > 0 || stats.n_streamed > 0 ? 1 : 0;
            }
    CHECK(n_evicting > 0);
}

void Work::budgets_that_change() const {
    Engine const engine(model, worked(), 0);
    Beside const other([&](uint32_t i) {
        emoe_error err;
        look(engine.handle, i);
        emoe_status const status = emoe_engine_set_cache_bytes(engine.handle, info.slot_bytes * (i % 5) / 4, &err);
        CHECK(status == EMOE_OK || status == EMOE_ERR_MEMORY);
    });
    for (int i = 0; i < 4; i++) CHECK(engine.answer() == answer);
}

void Work::cancels_and_faults() const {
    emoe_setup setup = worked();
    Engine const engine(model, setup, 0);
    {
        Beside const other([&](uint32_t) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            emoe_engine_cancel(engine.handle);
        });
        for (int i = 0; i < 10; i++) {
            GIVEN(emoe_engine_rewind(engine.handle, 0, &g_err));
            emoe_status const status = engine.decode(0, k_prompt);
            CHECK(status == EMOE_OK || status == EMOE_ERR_CANCELLED);
        }
    }
    CHECK(engine.answer() == answer);
    for (uint32_t kind = EMOE_FAULT_FAIL; kind <= EMOE_FAULT_INTERRUPT; kind++)
        for (uint64_t const n : {uint64_t{0}, uint64_t{7}}) {
            GIVEN(emoe_engine_rewind(engine.handle, 0, &g_err));
            emoe_engine_inject_fault(engine.handle, kind, n);
            emoe_status const status = engine.decode(0, k_prompt);
            CHECK(status == EMOE_OK || kind == EMOE_FAULT_FAIL || kind == EMOE_FAULT_TRUNCATE);
            emoe_engine_inject_fault(engine.handle, kind, UINT64_MAX);
        }
    CHECK(engine.answer() == answer);
}

void Work::states_and_drafts() const {
    Engine const engine(model, worked(), info.slot_bytes / 2);
    GIVEN(emoe_engine_rewind(engine.handle, 0, &g_err));
    CHECK_EQ(engine.decode(0, k_prompt), EMOE_OK);
    std::vector<uint8_t> state(emoe_engine_state_bytes(engine.handle));
    uint64_t n_bytes = 0;
    GIVEN(emoe_engine_state_get(engine.handle, state.data(), state.size(), &n_bytes, &g_err));
    Logits one_by_one[4], found;
    for (uint32_t i = 0; i < 4; i++) CHECK_EQ(engine.decode(k_prompt + i, 1, &one_by_one[i]), EMOE_OK);
    std::vector<uint8_t> spoilt = state;
    for (size_t i = 0; i < spoilt.size(); i += 97) spoilt[i] ^= 0x55;
    (void)emoe_engine_state_set(engine.handle, spoilt.data(), n_bytes, &g_err); // taken or refused
    REFUSED(emoe_engine_state_set(engine.handle, state.data(), n_bytes / 2, &g_err));
    GIVEN(emoe_engine_state_set(engine.handle, state.data(), n_bytes, &g_err));
    CHECK_EQ(emoe_engine_n_past(engine.handle), k_prompt);
    CHECK_EQ(engine.decode(k_prompt, 1, &found), EMOE_OK);
    CHECK(found == one_by_one[0]);
    if (emoe_engine_can_verify(engine.handle, &g_err) != EMOE_OK) return;
    GIVEN(emoe_engine_rewind(engine.handle, k_prompt, &g_err));
    std::vector<int32_t> draft;
    for (uint32_t i = 0; i < 4; i++) draft.push_back(token_of(k_prompt + i, engine.n_vocab));
    GIVEN(emoe_engine_verify(engine.handle, draft.data(), 4, &g_err));
    for (uint32_t i = 0; i < 4; i++) CHECK(engine.logits(i) == one_by_one[i]);
}

// Three answers a pass, then two that are no neighbours, whose places are exchanged.
void Work::sequences() const {
    emoe_setup setup = worked();
    setup.n_sequence = 3;
    emoe_engine *handle = nullptr;
    emoe_status const status = emoe_engine_open(model, nullptr, &setup, 0, &handle, &g_err);
    emoe_engine_close(handle);
    if (status == EMOE_ERR_UNSUPPORTED) return;
    Engine const engine(model, setup, info.slot_bytes / 2);
    Logits alone[3];
    for (uint32_t s = 0; s < 3; s++) { // a prompt each, and how it goes on alone
        GIVEN(emoe_engine_select(engine.handle, s, &g_err));
        CHECK_EQ(engine.decode(s, 20 + s), EMOE_OK);
        int32_t const token = token_of(s, engine.n_vocab);
        GIVEN(emoe_engine_decode(engine.handle, &token, 1, 0, &g_err));
        alone[s] = engine.logits(0, s);
        GIVEN(emoe_engine_rewind(engine.handle, 20 + s, &g_err));
    }
    Beside const other([&](uint32_t i) {
        emoe_error err;
        look(engine.handle, i);
        (void)emoe_engine_set_cache_bytes(engine.handle, info.slot_bytes * (1 + i % 3) / 3, &err);
    });
    for (std::vector<uint32_t> const &together : {std::vector<uint32_t>{0, 1, 2}, {2, 0}, {1}, {0, 2, 1}}) {
        std::vector<int32_t> tokens;
        for (uint32_t const s : together) tokens.push_back(token_of(s, engine.n_vocab));
        GIVEN(emoe_engine_step(engine.handle, together.data(), tokens.data(), static_cast<uint32_t>(tokens.size()),
                               &g_err));
        for (uint32_t const s : together) {
            CHECK(engine.logits(0, s) == alone[s]);
            GIVEN(emoe_engine_select(engine.handle, s, &g_err));
            GIVEN(emoe_engine_rewind(engine.handle, 20 + s, &g_err));
        }
    }
}

void Work::samplers() const {
    Engine const engine(model, worked(), info.slot_bytes);
    emoe_text *text = emoe_engine_text(engine.handle);
    auto params = zeros<emoe_sampler_params>();
    params.temp = 0.8F;
    params.top_p = 0.9F;
    params.top_k = 20;
    params.repeat_penalty = 1.1F;
    params.repeat_last_n = 16;
    int32_t const biased[] = {1, 2};
    float const values[] = {-2, 3};
    for (int kind = 0; kind < 4; kind++) {
        auto constraint = zeros<emoe_constraint>();
        constraint.n_bias = 2;
        constraint.bias_tokens = biased;
        constraint.bias_values = values;
        constraint.presence_penalty = 0.5F;
        constraint.dry_multiplier = kind == 1 ? 0.8F : 0;
        constraint.dry_base = 1.75F;
        constraint.dry_allowed_length = 2;
        constraint.dry_last_n = -1;
        constraint.mirostat = kind == 2 ? 2 : 0;
        constraint.mirostat_tau = 5;
        constraint.mirostat_eta = 0.1F;
        if (kind == 3) constraint.grammar = "root ::= [a-z ]+";
        emoe_sampler *sampler = nullptr;
        GIVEN(emoe_sampler_open(&params, &sampler, &g_err));
        GIVEN(emoe_sampler_constrain(sampler, text, &constraint, &g_err));
        GIVEN(emoe_engine_rewind(engine.handle, 0, &g_err));
        CHECK_EQ(engine.decode(0, 8), EMOE_OK);
        for (int i = 0; i < 5; i++) {
            int32_t const token = emoe_sampler_sample(sampler, text, 0);
            CHECK(token >= 0);
            if (token < 0 || emoe_text_is_eog(text, token)) break;
            GIVEN(emoe_engine_decode(engine.handle, &token, 1, 0, &g_err));
            char piece[64];
            CHECK(emoe_text_piece(text, token, 1, piece, sizeof piece) >= 0);
            float logprob = 0, top[5];
            int32_t likeliest[5];
            GIVEN(emoe_text_logprobs(text, 0, token, &logprob, 5, likeliest, top, &g_err));
        }
        emoe_sampler_close(sampler);
    }
}

void Work::calibration_and_traces() const {
    Engine const engine(model, worked(), info.slot_bytes / 2);
    std::string const trace = folder + "/trace";
    GIVEN(emoe_engine_trace(engine.handle, trace.c_str(), "{}", &g_err));
    CHECK(engine.answer() == answer);
    GIVEN(emoe_engine_trace(engine.handle, nullptr, nullptr, &g_err));
    CHECK(fs::file_size(trace) > 0);
    GIVEN(emoe_collect_begin(engine.handle, 4, 3, &g_err));
    CHECK(engine.answer() == answer);
    float state[5];
    GIVEN(emoe_collect_read(engine.handle, 0, EMOE_COLLECT_STATE, state, 5, &g_err));
    CHECK(state[1] > 0);
    GIVEN(emoe_collect_noise(engine.handle, 0, 0.1F, nullptr, 0, &g_err));
    CHECK(engine.answer() != answer);
    emoe_collect_end(engine.handle);
    CHECK(engine.answer() == answer);
}

// What an app does: an answer while the budget changes, one that is ended from elsewhere, one that stops itself.
void Work::sessions(const char *path) const {
    emoe_setup setup = worked();
    setup.memory = uint64_t{64} << 30; // a sanitizer takes more than any budget knows
    setup.n_outputs = 0;
    emoe_session *session = nullptr;
    GIVEN(emoe_session_open(path, folder.c_str(), &setup, &session, nullptr, &g_err));
    if (!session) return;
    emoe_message const messages[] = {{"system", "Be brief."}, {"user", "hello there"}};
    const char *const stops[] = {"\n\n\n"};
    std::string said[3];
    for (int i = 0; i < 3; i++) {
        Beside const other([&](uint32_t k) {
            emoe_error err;
            auto plan = zeros<emoe_plan>();
            CHECK_EQ(emoe_session_get_plan(session, &plan, &err), EMOE_OK);
            (void)emoe_session_memory_warning(session, k % 3, &err);
            (void)emoe_session_set_budget(session, (uint64_t{32} << 30) * (1 + k % 2), &err);
            if (i == 1) emoe_session_cancel(session);
        });
        auto params = zeros<emoe_answer_params>();
        params.max_tokens = 12;
        params.stop = stops;
        params.n_stop = 1;
        emoe_error err;
        emoe_status status = emoe_session_chat(session, messages, 2, "chatml", &params, &err);
        const char *text = nullptr;
        uint64_t n = 0;
        while (status == EMOE_OK && (status = emoe_session_next(session, &text, &n, &err)) == EMOE_OK && text)
            said[i].append(text, n);
        CHECK(status == EMOE_OK || (i == 1 && status == EMOE_ERR_CANCELLED));
    }
    CHECK(said[0] == said[2]);
    emoe_session_close(session);
}

void Work::engines_at_once() const {
    Logits found[2];
    std::vector<std::thread> threads;
    for (Logits &one : found)
        threads.emplace_back([&] { one = Engine(model, worked(), info.slot_bytes / 2).answer(); });
    for (std::thread &thread : threads) thread.join();
    for (Logits const &one : found) CHECK(one == answer);
}

void work(const char *path, const std::string &folder) {
    Work w;
    w.folder = folder;
    GIVEN(emoe_model_open(path, &w.model, &g_err));
    if (!w.model) return;
    GIVEN(emoe_model_get_info(w.model, &w.info, &g_err));
    w.answer = Engine(w.model, worked(), w.info.slot_bytes * 2).answer();
    CHECK(!w.answer.empty());
    w.every_cache_and_reader();
    w.budgets_that_change();
    w.cancels_and_faults();
    w.states_and_drafts();
    w.sequences();
    w.samplers();
    w.calibration_and_traces();
    w.sessions(path);
    w.engines_at_once();
    emoe_model_close(w.model);
}

} // namespace

int main(int argc, char **argv) {
    std::string const folder =
        (fs::temp_directory_path() / ("emoe-work-" + std::to_string(std::random_device()()))).u8string();
    if (argc < 2 || !fs::create_directory(fs::u8path(folder))) return 1;
    for (int i = 1; i < argc; i++) {
        int const before = g_failures;
        work(argv[i], folder);
        printf("%s: %d failures\n", argv[i], g_failures - before);
    }
    std::error_code ignored;
    fs::remove_all(fs::u8path(folder), ignored);
    return g_failures != 0;
}
