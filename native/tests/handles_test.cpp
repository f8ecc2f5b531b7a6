// Every function of edgemoe.h with what a caller may get wrong: null handles and pointers, structs of sizes that cannot
// be, numbers that mean nothing. Each is refused, or answers what the header says of nothing; none crashes.
//
//   handles_test [model.gguf]      without a model: only what needs no handle
#include "handles.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>

namespace fs = std::filesystem;

namespace {

emoe_status no_sizes(void *, uint32_t, uint32_t, emoe_context_sizes *) { return EMOE_ERR_CANCELLED; }
emoe_status some_sizes(void *, uint32_t, uint32_t, emoe_context_sizes *sizes) {
    sizes->kv_bytes = 1 << 20;
    return EMOE_OK;
}
emoe_status huge_sizes(void *, uint32_t, uint32_t, emoe_context_sizes *sizes) {
    memset(reinterpret_cast<char *>(sizes) + 8, 0xFF, sizeof *sizes - 8);
    return EMOE_OK;
}
emoe_status resized(void *, uint64_t) { return EMOE_OK; }
emoe_status not_resized(void *, uint64_t) { return EMOE_ERR_IO; }
uint64_t nothing_resident(void *) { return 0; }

// ---------------------------------------------------------------- without any handle

void the_library_answers() {
    CHECK_EQ(emoe_abi_version(), uint32_t{EMOE_ABI_VERSION});
    CHECK(strlen(emoe_build_info()) > 0);
    CHECK(strlen(emoe_build_stamp()) > strlen(emoe_build_info()));
    CHECK_EQ(emoe_processor_check(&g_err), EMOE_OK);
    emoe_set_log_level(0);
    wrong_sizes<emoe_memory_info>([](emoe_memory_info *i) { return emoe_memory_get(nullptr, i, &g_err); });
    auto info = zeros<emoe_memory_info>();
    GIVEN(emoe_memory_get(k_nowhere, &info, &g_err));
    GIVEN(emoe_memory_get("", &info, nullptr));
    emoe_memory_trim();
    CHECK(emoe_memory_rss() > 0);
    wrong_sizes<emoe_device_info>([](emoe_device_info *i) { return emoe_device_get(0, i, &g_err); });
    auto device = zeros<emoe_device_info>();
    REFUSED(emoe_device_get(emoe_device_count(), &device, &g_err));
    REFUSED(emoe_device_get(UINT32_MAX, &device, &g_err));
    REFUSED(emoe_backend_load(nullptr, &g_err));
    REFUSED(emoe_backend_load(k_nowhere, &g_err));
}

void measuring_refuses_nonsense(const char *some_file) {
    auto speed = zeros<emoe_storage_speed>();
    REFUSED(emoe_storage_measure(nullptr, 4096, 1, 1, 1, &speed, &g_err));
    REFUSED(emoe_storage_measure(k_nowhere, 4096, 1, 1, 1, &speed, &g_err));
    REFUSED(emoe_storage_measure("/", 4096, 1, 1, 1, &speed, &g_err));
    REFUSED(emoe_storage_measure(some_file, 4096, 0, 1, 1, &speed, &g_err));
    REFUSED(emoe_storage_measure(some_file, 4096, k_garbage, 1, 1, &speed, &g_err));
    GIVEN(emoe_storage_measure(some_file, 0, 1, 0, 0, &speed, &g_err));
    GIVEN(emoe_storage_measure(some_file, k_huge, 1, 1, k_huge, &speed, &g_err));
    wrong_sizes<emoe_storage_speed>(
        [&](emoe_storage_speed *s) { return emoe_storage_measure(some_file, 4096, 1, 1, 1, s, &g_err); });
    uint64_t rate = 0;
    REFUSED(emoe_compute_measure(nullptr, 1, 1, &rate, &g_err));
    REFUSED(emoe_compute_measure("no type", 1, 1, &rate, &g_err));
    REFUSED(emoe_compute_measure("Q8_0", 1, 1, nullptr, &g_err));
    REFUSED(emoe_compute_measure("q8_0", 0, 1, &rate, &g_err));
    REFUSED(emoe_compute_measure("q8_0", k_garbage, 1, &rate, &g_err));
}

void blocks_are_not_rounded_to_nonsense() {
    constexpr int32_t f32 = 0, q8_0 = 8, q8_1 = 9; // ggml's numbers
    float weights[32] = {}, importance[32] = {}, factor[32 * 32] = {};
    uint8_t out[64];
    auto const round = [&](int32_t type) {
        return emoe_quantize_block(type, weights, factor, importance, 1, out, &g_err);
    };
    REFUSED(round(q8_0)); // a factor of zeros
    for (int i = 0; i < 32; i++) factor[33 * i] = 1;
    GIVEN(round(q8_0));
    for (int32_t const type : {-1, f32, q8_1, INT32_MIN, INT32_MAX}) REFUSED(round(type));
    weights[5] = std::nanf("");
    REFUSED(round(q8_0));
    weights[5] = 0;
    REFUSED(emoe_quantize_block(q8_0, nullptr, factor, importance, 1, out, &g_err));
    REFUSED(emoe_quantize_block(q8_0, weights, nullptr, importance, 1, out, &g_err));
    REFUSED(emoe_quantize_block(q8_0, weights, factor, nullptr, 1, out, &g_err));
    REFUSED(emoe_quantize_block(q8_0, weights, factor, importance, 1, nullptr, &g_err));
    GIVEN(emoe_quantize_block(q8_0, weights, factor, importance, 0, out, &g_err));
}

void nothing_opens_from_nothing(const char *no_gguf) {
    emoe_model *model = nullptr;
    REFUSED(emoe_model_open(nullptr, &model, &g_err));
    REFUSED(emoe_model_open(k_nowhere, &model, &g_err));
    REFUSED(emoe_model_open_with(nullptr, nullptr, 0, &model, &g_err));
    REFUSED(emoe_model_open_with(no_gguf, nullptr, 1, &model, &g_err));
    REFUSED(emoe_model_open_with(no_gguf, nullptr, 0, nullptr, &g_err));
    REFUSED(emoe_model_open("", &model, &g_err));
    REFUSED(emoe_model_open("/", &model, &g_err));
    REFUSED_AS(emoe_model_open(no_gguf, &model, &g_err), EMOE_ERR_FORMAT);
    REFUSED(emoe_model_open(no_gguf, nullptr, &g_err));
    CHECK(emoe_model_open(nullptr, nullptr, nullptr) != EMOE_OK);
    CHECK(model == nullptr);
    emoe_text *text = nullptr;
    REFUSED(emoe_text_open(nullptr, &text, &g_err));
    REFUSED(emoe_text_open(k_nowhere, &text, &g_err));
    REFUSED(emoe_text_open(no_gguf, &text, &g_err));
    REFUSED(emoe_text_open(no_gguf, nullptr, &g_err));
    CHECK(text == nullptr);
    emoe_session *session = nullptr;
    emoe_setup const setup = shaped();
    auto plan = zeros<emoe_plan>();
    REFUSED(emoe_session_open(nullptr, k_nowhere, &setup, &session, nullptr, &g_err));
    REFUSED(emoe_session_open(k_nowhere, nullptr, &setup, &session, nullptr, &g_err));
    REFUSED(emoe_session_open(k_nowhere, k_nowhere, &setup, nullptr, nullptr, &g_err));
    REFUSED(emoe_session_open(k_nowhere, k_nowhere, &setup, &session, &plan, &g_err));
    wrong_sizes<emoe_setup>(
        [&](emoe_setup *s) { return emoe_session_open(k_nowhere, k_nowhere, s, &session, nullptr, &g_err); });
    plan.struct_size = 0;
    REFUSED(emoe_session_open(k_nowhere, k_nowhere, &setup, &session, &plan, &g_err));
    CHECK(session == nullptr);
}

void a_null_model_is_refused() {
    emoe_setup const setup = shaped();
    auto info = zeros<emoe_model_info>();
    auto layer = zeros<emoe_layer_info>();
    auto sizes = zeros<emoe_context_sizes>();
    auto plan = zeros<emoe_plan>();
    emoe_engine *engine = nullptr;
    char path[64];
    uint32_t whole = 0;
    uint64_t a = 0, b = 0;
    emoe_model_close(nullptr);
    REFUSED(emoe_model_get_info(nullptr, &info, &g_err));
    REFUSED(emoe_model_get_host_info(nullptr, &setup, &info, &g_err));
    auto recommendation = zeros<emoe_recommendation>();
    CHECK_EQ(emoe_model_get_recommendation(nullptr, &recommendation, &g_err), EMOE_OK); // llama.cpp's own values
    CHECK_EQ(recommendation.given, 0u);
    CHECK_EQ(recommendation.top_k, 40);
    REFUSED(emoe_model_get_recommendation(nullptr, nullptr, &g_err));
    REFUSED(emoe_model_get_layer(nullptr, 0, &layer, &g_err));
    CHECK_EQ(emoe_model_meta(nullptr, "general.name", path, sizeof path), -1);
    REFUSED(emoe_shell_write(nullptr, k_nowhere, 1, &g_err));
    REFUSED(emoe_shell_check(nullptr, k_nowhere, &g_err));
    REFUSED(emoe_shell_find(nullptr, k_nowhere, &setup, path, sizeof path, &whole, &g_err));
    REFUSED(emoe_shell_make(nullptr, k_nowhere, &setup, path, sizeof path, &g_err));
    REFUSED(emoe_context_measure(nullptr, k_nowhere, &setup, &sizes, &g_err));
    REFUSED(emoe_gpu_experts_measure(nullptr, nullptr, 0, 1, &a, &b, &g_err));
    REFUSED(emoe_gpu_experts_speed(nullptr, 1, 0, 1, &a, &g_err));
    REFUSED(emoe_plan_make(nullptr, k_nowhere, &setup, &plan, &g_err));
    REFUSED(emoe_engine_open(nullptr, k_nowhere, &setup, 0, &engine, &g_err));
}

void a_null_engine_is_refused() {
    int32_t token = 0;
    float number = 0;
    uint8_t state = 0;
    auto stats = zeros<emoe_stats>();
    auto accuracy = zeros<emoe_accuracy>();
    emoe_engine_close(nullptr);
    REFUSED(emoe_engine_decode(nullptr, &token, 1, 0, &g_err));
    REFUSED(emoe_engine_decode(nullptr, nullptr, 1, 0, &g_err));
    REFUSED(emoe_engine_verify(nullptr, &token, 1, &g_err));
    REFUSED(emoe_engine_can_verify(nullptr, &g_err));
    CHECK_EQ(emoe_engine_can_cut(nullptr), 0u);
    CHECK_EQ(emoe_engine_state_key(nullptr), 0u);
    CHECK(emoe_engine_text(nullptr) == nullptr);
    CHECK(emoe_engine_sequence_text(nullptr, 0) == nullptr);
    REFUSED(emoe_engine_select(nullptr, 0, &g_err));
    uint32_t const sequence = 0;
    REFUSED(emoe_engine_step(nullptr, &sequence, &token, 1, &g_err));
    CHECK_EQ(emoe_engine_n_ctx(nullptr), 0u);
    CHECK_EQ(emoe_engine_n_past(nullptr), 0u);
    REFUSED(emoe_engine_rewind(nullptr, 0, &g_err));
    uint64_t n_state = 0;
    CHECK_EQ(emoe_engine_state_bytes(nullptr), 0u);
    REFUSED(emoe_engine_state_get(nullptr, &state, 1, &n_state, &g_err));
    REFUSED(emoe_engine_state_set(nullptr, &state, 1, &g_err));
    uint64_t picture = 0;
    uint32_t n_token = 0;
    REFUSED(emoe_engine_picture_add(nullptr, k_nowhere, &state, 1, &picture, &g_err));
    REFUSED(emoe_engine_picture_tokens(nullptr, 1, nullptr, 0, &n_token, &g_err));
    REFUSED(emoe_engine_picture_decode(nullptr, 1, 0, &g_err));
    emoe_engine_picture_forget(nullptr, 1);
    CHECK_EQ(emoe_engine_checkpoint_bytes(nullptr), 0u);
    REFUSED(emoe_engine_checkpoint_get(nullptr, &state, 1, &n_state, &g_err));
    REFUSED(emoe_engine_checkpoint_set(nullptr, &state, 1, &g_err));
    emoe_engine_cancel(nullptr);
    emoe_engine_clear_cancel(nullptr);
    REFUSED(emoe_engine_set_cache_bytes(nullptr, k_huge, &g_err));
    REFUSED(emoe_engine_get_stats(nullptr, &stats, &g_err));
    CHECK_EQ(emoe_engine_resident(nullptr, 0), 0u);
    CHECK_EQ(emoe_engine_experts(nullptr, 0, &state, 1), 0u);
    REFUSED(emoe_engine_accuracy(nullptr, 0, &accuracy, &g_err));
    CHECK_EQ(emoe_engine_rates(nullptr, &number, 1), 0u);
    emoe_engine_warm_start(nullptr, &number, 1);
    REFUSED(emoe_engine_trace(nullptr, k_nowhere, "{}", &g_err));
    emoe_engine_inject_fault(nullptr, k_garbage, 0);
    CHECK_EQ(emoe_collect_bytes(nullptr, k_garbage), 0u);
    REFUSED(emoe_collect_begin(nullptr, 1, 1, &g_err));
    emoe_collect_end(nullptr);
    REFUSED(emoe_collect_noise(nullptr, 0, 1, nullptr, 0, &g_err));
    REFUSED(emoe_collect_skip(nullptr, nullptr, nullptr, 1, 1, &g_err));
    CHECK(emoe_collect_skipped(nullptr) == 0);
    REFUSED(emoe_collect_read(nullptr, 0, EMOE_COLLECT_STATE, &number, 1, &g_err));
}

void a_null_text_is_refused() {
    int32_t token = 0;
    float number = 0;
    char buf[8];
    emoe_text_close(nullptr);
    REFUSED(emoe_text_set_logits(nullptr, &number, 1, &g_err));
    CHECK(emoe_text_logits(nullptr, 0) == nullptr);
    CHECK_EQ(emoe_text_tokenize(nullptr, "a", 1, 0, 0, &token, 1), -1);
    CHECK_EQ(emoe_text_piece(nullptr, 0, 0, buf, sizeof buf), -1);
    CHECK_EQ(emoe_text_is_eog(nullptr, 0), 0u);
    CHECK_EQ(emoe_text_bos(nullptr), -1);
    CHECK_EQ(emoe_text_eos(nullptr), -1);
    CHECK_EQ(emoe_text_n_vocab(nullptr), 0u);
    CHECK_EQ(emoe_text_fim(nullptr, EMOE_FIM_PREFIX), -1);
    REFUSED(emoe_text_logprobs(nullptr, 0, 0, &number, 0, nullptr, nullptr, &g_err));
    auto const constraint = zeros<emoe_constraint>();
    REFUSED(emoe_sampler_constrain(nullptr, nullptr, &constraint, &g_err));
    CHECK_EQ(emoe_sampler_sample(nullptr, nullptr, 0), -1);
    emoe_sampler_close(nullptr);
}

void samplers_of_nonsense_are_refused() {
    emoe_sampler *sampler = nullptr;
    wrong_sizes<emoe_sampler_params>([&](emoe_sampler_params *p) { return emoe_sampler_open(p, &sampler, &g_err); });
    auto const good = zeros<emoe_sampler_params>();
    REFUSED(emoe_sampler_open(&good, nullptr, &g_err));
    float const nan = std::nanf("");
    for (float emoe_sampler_params::*const field : {&emoe_sampler_params::temp, &emoe_sampler_params::top_p,
                                                    &emoe_sampler_params::min_p, &emoe_sampler_params::repeat_penalty})
        for (float const value : {nan, -1.0F, HUGE_VALF}) {
            emoe_sampler_params p = good;
            p.*field = value;
            REFUSED(emoe_sampler_open(&p, &sampler, &g_err));
        }
    emoe_sampler_params p = good;
    p.repeat_last_n = INT32_MAX;
    REFUSED(emoe_sampler_open(&p, &sampler, &g_err));
    CHECK(sampler == nullptr);
    p = good;
    p.top_k = INT32_MIN;
    p.repeat_last_n = INT32_MIN;
    GIVEN(emoe_sampler_open(&p, &sampler, &g_err));
    auto const constraint = zeros<emoe_constraint>();
    REFUSED(emoe_sampler_constrain(sampler, nullptr, &constraint, &g_err));
    CHECK_EQ(emoe_sampler_sample(sampler, nullptr, 0), -1);
    emoe_sampler_close(sampler);
}

void a_null_session_is_refused() {
    auto const params = zeros<emoe_answer_params>();
    emoe_message const message = {"user", "hello"};
    auto plan = zeros<emoe_plan>();
    const char *text = nullptr;
    uint64_t n = 0;
    int32_t token = 0;
    emoe_session_close(nullptr);
    REFUSED(emoe_session_chat(nullptr, &message, 1, nullptr, &params, &g_err));
    REFUSED(emoe_session_prompt(nullptr, "a", 1, &params, &g_err));
    REFUSED(emoe_session_prompt(nullptr, nullptr, 1, nullptr, &g_err));
    REFUSED(emoe_session_next(nullptr, &text, &n, &g_err));
    CHECK_EQ(emoe_session_finish(nullptr), uint32_t{EMOE_FINISH_NONE});
    CHECK_EQ(emoe_session_tokens(nullptr, &token, 1), 0u);
    emoe_session_cancel(nullptr);
    REFUSED(emoe_session_set_budget(nullptr, k_huge, &g_err));
    REFUSED(emoe_session_memory_warning(nullptr, EMOE_MEMORY_LOW, &g_err));
    REFUSED(emoe_session_memory_warning(nullptr, k_garbage, &g_err));
    REFUSED(emoe_session_get_plan(nullptr, &plan, &g_err));
    CHECK(emoe_session_engine(nullptr) == nullptr);
}

void chats_of_nonsense_are_refused() {
    emoe_message const message = {"user", "hello"}, no_role = {nullptr, "hello"}, no_content = {"user", nullptr};
    uint64_t n = 0;
    char buf[4];
    REFUSED(emoe_chat_render(nullptr, &message, 1, buf, sizeof buf, &n, &g_err));
    REFUSED(emoe_chat_render("chatml", nullptr, 1, buf, sizeof buf, &n, &g_err));
    REFUSED(emoe_chat_render("chatml", &message, 0, buf, sizeof buf, &n, &g_err));
    REFUSED(emoe_chat_render("chatml", &no_role, 1, buf, sizeof buf, &n, &g_err));
    REFUSED(emoe_chat_render("chatml", &no_content, 1, buf, sizeof buf, &n, &g_err));
    REFUSED(emoe_chat_render("chatml", &message, 1, buf, sizeof buf, nullptr, &g_err));
    REFUSED_AS(emoe_chat_render("no such template", &message, 1, buf, sizeof buf, &n, &g_err), EMOE_ERR_UNSUPPORTED);
    REFUSED(emoe_chat_render("no\ntemplate\x1b", &message, 1, buf, sizeof buf, &n, &g_err));
    CHECK(strstr(g_err.message, "no\\x0atemplate\\x1b") != nullptr); // one line, which a terminal does not obey
    GIVEN(emoe_chat_render("chatml", &message, 1, nullptr, k_huge, &n, &g_err));
    CHECK(n > sizeof buf);
    GIVEN(emoe_chat_render("chatml", &message, 1, buf, sizeof buf, &n, &g_err));
    CHECK_EQ(strlen(buf), sizeof buf - 1);
}

void streams_of_nonsense_are_refused() {
    emoe_stream *stream = nullptr;
    const char *text = nullptr;
    uint64_t n = 0;
    const char *const stop[] = {"end"}, *const none[] = {nullptr};
    uint64_t const bytes[] = {3};
    REFUSED(emoe_stream_open(nullptr, nullptr, 0, nullptr, &g_err));
    REFUSED(emoe_stream_open(nullptr, bytes, 1, &stream, &g_err));
    REFUSED(emoe_stream_open(stop, nullptr, 1, &stream, &g_err));
    REFUSED(emoe_stream_open(none, bytes, 1, &stream, &g_err));
    REFUSED(emoe_stream_feed(nullptr, "a", 1, &text, &n, &g_err));
    REFUSED(emoe_stream_finish(nullptr, &text, &n, &g_err));
    CHECK_EQ(emoe_stream_stopped(nullptr), 0u);
    emoe_stream_close(nullptr);
    CHECK(stream == nullptr);
    GIVEN(emoe_stream_open(stop, bytes, 1, &stream, &g_err));
    REFUSED(emoe_stream_feed(stream, nullptr, 1, &text, &n, &g_err));
    REFUSED(emoe_stream_feed(stream, "a", 1, nullptr, &n, &g_err));
    REFUSED(emoe_stream_feed(stream, "a", 1, &text, nullptr, &g_err));
    REFUSED(emoe_stream_finish(stream, nullptr, &n, &g_err));
    REFUSED(emoe_stream_finish(stream, &text, nullptr, &g_err));
    GIVEN(emoe_stream_feed(stream, nullptr, 0, &text, &n, &g_err));
    CHECK_EQ(n, 0u);
    emoe_stream_close(stream);
}

void policies_of_nonsense_are_refused() {
    emoe_policy *policy = nullptr;
    uint32_t const n_expert[] = {4, 4}, too_many[] = {UINT32_MAX, UINT32_MAX};
    REFUSED(emoe_policy_open(k_garbage, n_expert, 2, 2, &policy, &g_err));
    REFUSED(emoe_policy_open(EMOE_POLICY_LRU, nullptr, 2, 2, &policy, &g_err));
    REFUSED(emoe_policy_open(EMOE_POLICY_LRU, n_expert, 0, 2, &policy, &g_err));
    REFUSED(emoe_policy_open(EMOE_POLICY_LRU, n_expert, 2, 0, &policy, &g_err));
    REFUSED(emoe_policy_open(EMOE_POLICY_LRU, n_expert, 2, 2, nullptr, &g_err));
    REFUSED(emoe_policy_open(EMOE_POLICY_LRU, too_many, 2, 2, &policy, &g_err));
    CHECK(policy == nullptr);
    uint32_t const expert = 1, row = 1;
    float weight = 1, badness[8], rates[8] = {};
    emoe_policy_close(nullptr);
    REFUSED(emoe_policy_visit(nullptr, 0, 1, &expert, &row, &weight, 1, &g_err));
    REFUSED(emoe_policy_badness(nullptr, badness, 8, &g_err));
    CHECK_EQ(emoe_policy_rates(nullptr, rates, 8), 0u);
    emoe_policy_warm_start(nullptr, rates, 8);
    for (uint32_t kind = EMOE_POLICY_NEXT_USE; kind <= EMOE_POLICY_MRS; kind++) {
        GIVEN(emoe_policy_open(kind, n_expert, 2, 2, &policy, &g_err));
        REFUSED(emoe_policy_visit(policy, 2, 1, &expert, &row, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, k_garbage, 1, &expert, &row, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, 0, 0, &expert, &row, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, 0, 1, &k_garbage, &row, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, 0, 1, nullptr, &row, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, 0, 1, &expert, nullptr, &weight, 1, &g_err));
        REFUSED(emoe_policy_visit(policy, 0, 1, &expert, &row, nullptr, 1, &g_err));
        GIVEN(emoe_policy_visit(policy, 0, 1, nullptr, nullptr, nullptr, 0, &g_err));
        REFUSED(emoe_policy_badness(policy, nullptr, 8, &g_err));
        REFUSED(emoe_policy_badness(policy, badness, 7, &g_err));
        REFUSED(emoe_policy_badness(policy, badness, k_huge, &g_err));
        CHECK(emoe_policy_rates(policy, nullptr, k_huge) <= 8);
        emoe_policy_warm_start(policy, nullptr, 8);
        emoe_policy_warm_start(policy, rates, k_huge);
        emoe_policy_close(policy);
    }
}

void replays_of_nonsense_are_refused() {
    uint64_t uses = 0, misses = 0;
    uint32_t const one = 1, zero = 0;
    float const weight = 1;
    auto good = zeros<emoe_replay_params>();
    good.n_layer = 1;
    good.n_expert = &one;
    good.n_expert_used = 1;
    good.n_slot = 1;
    good.n_visit = 1;
    good.layer = &zero;
    good.n_token = &one;
    good.n_use = &one;
    good.expert = &zero;
    good.n_row = &one;
    good.weight = &weight;
    GIVEN(emoe_replay(&good, &uses, &misses, &g_err));
    CHECK_EQ(misses, 1u);
    wrong_sizes<emoe_replay_params>([&](emoe_replay_params *p) { return emoe_replay(p, &uses, &misses, &g_err); },
                                    good);
    REFUSED(emoe_replay(&good, nullptr, &misses, &g_err));
    REFUSED(emoe_replay(&good, &uses, nullptr, &g_err));
    auto const refused = [&](auto &&spoil) {
        emoe_replay_params p = good;
        spoil(p);
        REFUSED(emoe_replay(&p, &uses, &misses, &g_err));
    };
    refused([](emoe_replay_params &p) { p.policy = k_garbage; });
    refused([](emoe_replay_params &p) { p.n_layer = 0; });
    refused([](emoe_replay_params &p) { p.n_slot = 0; });
    refused([](emoe_replay_params &p) { p.n_expert_used = 0; });
    refused([](emoe_replay_params &p) { p.n_expert = nullptr; });
    refused([](emoe_replay_params &p) { p.layer = nullptr; });
    refused([](emoe_replay_params &p) { p.n_token = nullptr; });
    refused([](emoe_replay_params &p) { p.n_use = nullptr; });
    refused([](emoe_replay_params &p) { p.expert = nullptr; });
    refused([](emoe_replay_params &p) { p.n_row = nullptr; });
    refused([](emoe_replay_params &p) { p.weight = nullptr; });
    refused([&](emoe_replay_params &p) { p.layer = &one; });
    refused([&](emoe_replay_params &p) { p.expert = &one; });
    refused([](emoe_replay_params &p) { p.n_visit = k_huge; });
}

// ---------------------------------------------------------------- plans and allowances of what the host describes

emoe_model_info described() {
    auto info = zeros<emoe_model_info>();
    info.dense_bytes = 10 << 20;
    info.expert_bytes = info.slot_bytes = 100 << 20;
    info.slot_min_bytes = 1 << 20;
    info.token_bytes = 2 << 20;
    info.dense_token_bytes = 10 << 20;
    info.n_expert_total = 100;
    memset(info.name, 'x', sizeof info.name); // no NUL at its end
    return info;
}

void plans_of_nonsense_are_refused() {
    emoe_model_info const info = described();
    auto plan = zeros<emoe_plan>();
    emoe_setup setup = shaped();
    setup.memory = 100 << 20;
    GIVEN(emoe_plan_choose(&info, some_sizes, nullptr, &setup, &plan, &g_err));
    wrong_sizes<emoe_model_info>(
        [&](emoe_model_info *i) { return emoe_plan_choose(i, some_sizes, nullptr, &setup, &plan, &g_err); }, info);
    wrong_sizes<emoe_setup>(
        [&](emoe_setup *s) { return emoe_plan_choose(&info, some_sizes, nullptr, s, &plan, &g_err); }, setup);
    wrong_sizes<emoe_plan>(
        [&](emoe_plan *p) { return emoe_plan_choose(&info, some_sizes, nullptr, &setup, p, &g_err); });
    REFUSED(emoe_plan_choose(&info, nullptr, nullptr, &setup, &plan, &g_err));
    REFUSED_AS(emoe_plan_choose(&info, no_sizes, nullptr, &setup, &plan, &g_err), EMOE_ERR_CANCELLED);
    (void)emoe_plan_choose(&info, huge_sizes, nullptr, &setup, &plan, &g_err); // sums that no number holds
    auto const empty = zeros<emoe_model_info>();
    REFUSED(emoe_plan_choose(&empty, some_sizes, nullptr, &setup, &plan, &g_err));
    for (emoe_setup const &s : garbage_setups())
        REFUSED(emoe_plan_choose(&info, some_sizes, nullptr, &s, &plan, &g_err));
    setup.memory = 1;
    REFUSED_AS(emoe_plan_choose(&info, some_sizes, nullptr, &setup, &plan, &g_err), EMOE_ERR_MEMORY);
    CHECK(plan.smallest_bytes > 1);

    uint64_t bytes = 0;
    REFUSED(emoe_budget_bytes(EMOE_BUDGET_BYTES, 1 << 20, 1 << 20, nullptr, &g_err));
    REFUSED(emoe_budget_bytes(EMOE_BUDGET_BYTES, 0, 1 << 20, &bytes, &g_err));
    REFUSED(emoe_budget_bytes(k_garbage, 1, 1 << 20, &bytes, &g_err));
    REFUSED(emoe_budget_bytes(EMOE_BUDGET_SHARE, k_huge, 1 << 20, &bytes, &g_err));
    CHECK(emoe_margin_bytes(0) > 0);
    CHECK(emoe_margin_bytes(k_huge) >= emoe_margin_bytes(uint64_t{1} << 60)); // never around

    auto speeds = zeros<emoe_speeds>();
    auto prediction = zeros<emoe_prediction>();
    REFUSED(emoe_plan_predict(&info, 0.5, &speeds, &prediction, &g_err)); // speeds of 0
    speeds.disk_bytes_per_s = speeds.compute_bytes_per_s = 1e9;
    GIVEN(emoe_plan_predict(&info, 0.5, &speeds, &prediction, &g_err));
    wrong_sizes<emoe_model_info>(
        [&](emoe_model_info *i) { return emoe_plan_predict(i, 0.5, &speeds, &prediction, &g_err); });
    wrong_sizes<emoe_speeds>([&](emoe_speeds *s) { return emoe_plan_predict(&info, 0.5, s, &prediction, &g_err); });
    wrong_sizes<emoe_prediction>([&](emoe_prediction *p) { return emoe_plan_predict(&info, 0.5, &speeds, p, &g_err); });
    for (double const fraction : {-1.0, 2.0, std::nan(""), HUGE_VAL})
        REFUSED(emoe_plan_predict(&info, fraction, &speeds, &prediction, &g_err));
    speeds.disk_bytes_per_s = std::nan("");
    REFUSED(emoe_plan_predict(&info, 0.5, &speeds, &prediction, &g_err));
    for (double const fraction : {-1.0, 2.0, std::nan(""), HUGE_VAL})
        CHECK(emoe_plan_hit_rate(fraction) >= 0 && emoe_plan_hit_rate(fraction) <= 1);
}

void allowances_of_nonsense_are_refused() {
    emoe_model_info const info = described();
    auto plan = zeros<emoe_plan>();
    plan.budget_bytes = uint64_t{1} << 30;
    plan.slot_min_bytes = 1 << 20;
    emoe_allowance *a = nullptr;
    uint64_t smallest = 0, before = 0;
    auto const open = [&](const emoe_plan *p, const emoe_model_info *i, uint64_t untouched, emoe_resize_fn resize) {
        return emoe_allowance_open(p, i, untouched, resize, nothing_resident, nullptr, &a, &smallest, &g_err);
    };
    wrong_sizes<emoe_plan>([&](emoe_plan *p) { return open(p, &info, 0, resized); }, plan);
    wrong_sizes<emoe_model_info>([&](emoe_model_info *i) { return open(&plan, i, 0, resized); }, info);
    auto const empty = zeros<emoe_model_info>();
    REFUSED(open(&plan, &empty, 0, resized));
    REFUSED(open(&plan, &info, 0, nullptr));
    REFUSED_AS(open(&plan, &info, 0, not_resized), EMOE_ERR_IO);
    REFUSED_AS(open(&plan, &info, k_huge, resized), EMOE_ERR_MEMORY);
    REFUSED(emoe_allowance_open(&plan, &info, 0, resized, nullptr, nullptr, nullptr, nullptr, &g_err));
    REFUSED(emoe_allowance_get_plan(nullptr, &plan, &g_err));
    REFUSED(emoe_allowance_spend(nullptr, 1, &smallest, &g_err));
    REFUSED(emoe_allowance_check(nullptr, &g_err));
    REFUSED(emoe_allowance_give_way(nullptr, 1, "this", &before, &smallest, &g_err));
    REFUSED(emoe_allowance_take_back(nullptr, 0, 0, &g_err));
    emoe_allowance_close(nullptr);
    CHECK(a == nullptr);
    GIVEN(open(&plan, &info, 0, resized));
    if (!a) return;
    wrong_sizes<emoe_plan>([&](emoe_plan *p) { return emoe_allowance_get_plan(a, p, &g_err); });
    REFUSED_AS(emoe_allowance_spend(a, 0, nullptr, &g_err), EMOE_ERR_MEMORY);
    (void)emoe_allowance_spend(a, k_huge, &smallest, &g_err);
    GIVEN(emoe_allowance_spend(a, uint64_t{1} << 30, &smallest, &g_err));
    REFUSED(emoe_allowance_give_way(a, 1, nullptr, &before, nullptr, &g_err));
    REFUSED(emoe_allowance_give_way(a, 1, "this", nullptr, nullptr, &g_err));
    REFUSED_AS(emoe_allowance_give_way(a, k_huge, "this", &before, &smallest, &g_err), EMOE_ERR_MEMORY);
    GIVEN(emoe_allowance_give_way(a, 1 << 20, "this", &before, nullptr, nullptr));
    GIVEN(emoe_allowance_take_back(a, before, 1 << 20, nullptr));
    GIVEN(emoe_allowance_check(a, &g_err));
    emoe_allowance_close(a);
}

} // namespace

int main(int argc, char **argv) {
    std::string const folder =
        (fs::temp_directory_path() / ("emoe-handles-" + std::to_string(std::random_device()()))).u8string();
    if (!fs::create_directory(fs::u8path(folder))) return 1;
    std::string const no_gguf = folder + "/no.gguf";
    if (FILE *f = fopen(no_gguf.c_str(), "wb")) {
        for (int i = 0; i < 2000; i++) fputs("This is no model.\n", f);
        fclose(f);
    }
    the_library_answers();
    measuring_refuses_nonsense(no_gguf.c_str());
    blocks_are_not_rounded_to_nonsense();
    nothing_opens_from_nothing(no_gguf.c_str());
    a_null_model_is_refused();
    a_null_engine_is_refused();
    a_null_text_is_refused();
    samplers_of_nonsense_are_refused();
    a_null_session_is_refused();
    chats_of_nonsense_are_refused();
    streams_of_nonsense_are_refused();
    policies_of_nonsense_are_refused();
    replays_of_nonsense_are_refused();
    plans_of_nonsense_are_refused();
    allowances_of_nonsense_are_refused();
    if (argc > 1 && fs::exists(argv[1]))
        handles_of(argv[1], folder.c_str());
    else
        fprintf(stderr, "no model is given: handles of one are not tried\n");
    std::error_code ignored;
    fs::remove_all(fs::u8path(folder), ignored);
    return g_failures;
}
