// Handles of a model: what is wrong beside them is refused, and they go on afterwards. Each has one nature.
#include "handles.h"

#include <cmath>
#include <string>
#include <vector>

namespace {

// Whether no path of a shell is one in memory.
#ifdef __linux__
constexpr bool k_memory_shells = true;
#else
constexpr bool k_memory_shells = false;
#endif

std::string path_in(const char *folder, const char *name) { return std::string(folder) + "/" + name; }

void a_text_stands_garbage(emoe_text *text, bool own) {
    int32_t token = 0, tokens[8];
    float number = 0;
    char buf[8];
    uint32_t const n_vocab = emoe_text_n_vocab(text);
    CHECK(n_vocab > 0);
    CHECK_EQ(emoe_text_tokenize(text, nullptr, 1, 0, 0, tokens, 8), -1);
    CHECK_EQ(emoe_text_tokenize(text, "a", k_huge, 0, 0, tokens, 8), -1);
    CHECK_EQ(emoe_text_tokenize(text, nullptr, 0, 0, 0, nullptr, k_huge), 0);
    CHECK(emoe_text_tokenize(text, "one two three", 13, k_garbage, k_garbage, nullptr, k_huge) > 0);
    CHECK(emoe_text_tokenize(text, "\xFF\xFE\x00\x80", 4, 0, 1, tokens, 0) > 0);
    for (int32_t const t : {-1, INT32_MIN, INT32_MAX, static_cast<int32_t>(n_vocab)}) {
        CHECK_EQ(emoe_text_piece(text, t, 0, buf, sizeof buf), 0);
        CHECK_EQ(emoe_text_is_eog(text, t), 0u);
    }
    CHECK(emoe_text_piece(text, 100, k_garbage, nullptr, k_huge) > 0);
    (void)emoe_text_bos(text);
    CHECK_EQ(emoe_text_fim(text, k_garbage), -1);
    CHECK(emoe_text_eos(text) < static_cast<int32_t>(n_vocab));
    CHECK(emoe_text_logits(text, 0) == nullptr);
    CHECK(emoe_text_logits(text, UINT32_MAX) == nullptr);
    REFUSED(emoe_text_logprobs(text, 0, 0, &number, 0, nullptr, nullptr, &g_err)); // there are no logits
    REFUSED(emoe_text_logprobs(text, 0, 0, nullptr, 0, nullptr, nullptr, &g_err));
    REFUSED(emoe_text_logprobs(text, 0, 0, &number, 1, nullptr, &number, &g_err));
    REFUSED(emoe_text_logprobs(text, 0, 0, &number, 1, &token, nullptr, &g_err));
    if (!own) {
        REFUSED_AS(emoe_text_set_logits(text, &number, 1, &g_err), EMOE_ERR_ARGUMENT);
        emoe_text_close(text); // does nothing: it is the engine's
        CHECK_EQ(emoe_text_n_vocab(text), n_vocab);
        return;
    }
    std::vector<float> const logits(n_vocab, 0.5F);
    GIVEN(emoe_text_set_logits(text, nullptr, k_garbage, &g_err));
    CHECK(emoe_text_logits(text, 0) == nullptr);
    GIVEN(emoe_text_set_logits(text, logits.data(), 1, &g_err));
    CHECK(emoe_text_logits(text, 0) == logits.data());
    CHECK(emoe_text_logits(text, 1) == nullptr);
    REFUSED(emoe_text_logprobs(text, 0, -1, &number, 0, nullptr, nullptr, &g_err));
    REFUSED(emoe_text_logprobs(text, 0, INT32_MAX, &number, 0, nullptr, nullptr, &g_err));
    REFUSED(emoe_text_logprobs(text, 0, 0, &number, UINT32_MAX, &token, &number, &g_err));
    GIVEN(emoe_text_logprobs(text, 0, 0, &number, 0, nullptr, nullptr, &g_err));
    GIVEN(emoe_text_set_logits(text, nullptr, 0, &g_err)); // which are not copied
}

void a_sampler_stands_garbage(emoe_text *text) {
    auto const params = zeros<emoe_sampler_params>();
    emoe_sampler *sampler = nullptr;
    GIVEN(emoe_sampler_open(&params, &sampler, &g_err));
    wrong_sizes<emoe_constraint>([&](emoe_constraint *c) { return emoe_sampler_constrain(sampler, text, c, &g_err); });
    int32_t const bad_token = INT32_MAX, token = 1;
    float const nan = std::nanf(""), bias = 1;
    auto const refused = [&](auto &&spoil) {
        auto c = zeros<emoe_constraint>();
        spoil(c);
        REFUSED_AS(emoe_sampler_constrain(sampler, text, &c, &g_err), EMOE_ERR_ARGUMENT);
    };
    refused([](emoe_constraint &c) { c.n_bias = 1; });
    refused([&](emoe_constraint &c) { c.n_bias = 1, c.bias_tokens = &token; });
    refused([&](emoe_constraint &c) { c.n_bias = 1, c.bias_tokens = &bad_token, c.bias_values = &bias; });
    refused([&](emoe_constraint &c) { c.n_bias = 1, c.bias_tokens = &token, c.bias_values = &nan; });
    refused([&](emoe_constraint &c) { c.presence_penalty = nan; });
    refused([](emoe_constraint &c) { c.frequency_penalty = HUGE_VALF; });
    for (const char *grammar : {"no grammar", "other ::= \"a\"", "root ::= nothing", "root ::= \"", "root ::= (", " "})
        refused([&](emoe_constraint &c) { c.grammar = grammar; });
    auto no_grammar = zeros<emoe_constraint>();
    no_grammar.grammar = "";
    GIVEN(emoe_sampler_constrain(sampler, text, &no_grammar, &g_err));
    std::string const deep(5000, '(');
    refused([&](emoe_constraint &c) { c.grammar = deep.c_str(); });
    CHECK_EQ(emoe_sampler_sample(sampler, text, UINT32_MAX), -1);
    CHECK(emoe_sampler_sample(sampler, text, 0) >= 0);
    refused([](emoe_constraint &) {}); // it has picked
    emoe_sampler_close(sampler);
}

void a_text_alone(const char *gguf) {
    emoe_text *text = nullptr;
    GIVEN(emoe_text_open(gguf, &text, &g_err));
    REFUSED(emoe_text_open(gguf, nullptr, &g_err));
    if (!text) return;
    a_text_stands_garbage(text, true);
    std::vector<float> const logits(emoe_text_n_vocab(text), 0.5F);
    GIVEN(emoe_text_set_logits(text, logits.data(), 1, &g_err));
    a_sampler_stands_garbage(text);
    emoe_text_close(text);
}

void facts_of_a_model(const emoe_model *model) {
    wrong_sizes<emoe_model_info>([&](emoe_model_info *i) { return emoe_model_get_info(model, i, &g_err); });
    emoe_setup const setup = shaped();
    auto info = zeros<emoe_model_info>();
    wrong_sizes<emoe_model_info>(
        [&](emoe_model_info *i) { return emoe_model_get_host_info(model, &setup, i, &g_err); });
    wrong_sizes<emoe_setup>([&](emoe_setup *s) { return emoe_model_get_host_info(model, s, &info, &g_err); });
    emoe_setup no_gpu = setup;
    no_gpu.device = k_garbage;
    no_gpu.n_gpu_layer = 1;
    REFUSED(emoe_model_get_host_info(model, &no_gpu, &info, &g_err));
    wrong_sizes<emoe_recommendation>(
        [&](emoe_recommendation *r) { return emoe_model_get_recommendation(model, r, &g_err); });
    wrong_sizes<emoe_layer_info>([&](emoe_layer_info *i) { return emoe_model_get_layer(model, 0, i, &g_err); });
    auto layer = zeros<emoe_layer_info>();
    REFUSED(emoe_model_get_layer(model, UINT32_MAX, &layer, &g_err));
    char buf[4];
    CHECK_EQ(emoe_model_meta(model, nullptr, buf, sizeof buf), -1);
    CHECK_EQ(emoe_model_meta(model, "no.such.key", buf, sizeof buf), -1);
    CHECK_EQ(emoe_model_meta(model, "tokenizer.ggml.tokens", buf, sizeof buf), -1);
    CHECK(emoe_model_meta(model, "general.architecture", nullptr, k_huge) > 0);
    CHECK(emoe_model_meta(model, "general.architecture", buf, sizeof buf) > 0);
    CHECK_EQ(strlen(buf), sizeof buf - 1);
    uint64_t gpu = 0, host = 0;
    uint32_t const expert = k_garbage;
    REFUSED(emoe_gpu_experts_measure(model, nullptr, 1, 1, &gpu, &host, &g_err));
    REFUSED(emoe_gpu_experts_measure(model, &expert, 1, 1, nullptr, &host, &g_err));
    REFUSED(emoe_gpu_experts_measure(model, &expert, 1, 1, &gpu, nullptr, &g_err));
    (void)emoe_gpu_experts_measure(model, &expert, 1, UINT32_MAX, &gpu, &host, &g_err);
    (void)emoe_gpu_experts_measure(model, &expert, 1, 0, &gpu, &host, &g_err);
    REFUSED(emoe_gpu_experts_speed(model, 0, 0, 1, &gpu, &g_err));
    REFUSED(emoe_gpu_experts_speed(model, k_garbage, 0, 1, &gpu, &g_err));
    REFUSED(emoe_gpu_experts_speed(model, 1, k_garbage, 1, &gpu, &g_err));
    REFUSED(emoe_gpu_experts_speed(model, 1, 0, 0, &gpu, &g_err));
    REFUSED(emoe_gpu_experts_speed(model, 1, 0, 1, nullptr, &g_err));
}

void shells_and_plans_of_a_model(const emoe_model *model, const char *folder) {
    std::string const nowhere = path_in(k_nowhere, "shell");
    char path[4096];
    emoe_setup gpu = {}; // whose shell is a file
    gpu.struct_size = sizeof gpu;
    gpu.device = 1;
    uint32_t whole = 7;
    REFUSED(emoe_shell_write(model, nullptr, 1, &g_err));
    REFUSED_AS(emoe_shell_write(model, nowhere.c_str(), 1, &g_err), EMOE_ERR_IO);
    REFUSED(emoe_shell_check(model, nullptr, &g_err));
    REFUSED(emoe_shell_check(model, nowhere.c_str(), &g_err));
    REFUSED(emoe_shell_check(model, path_in(folder, "no.gguf").c_str(), &g_err));
    REFUSED(emoe_shell_find(model, nullptr, &gpu, path, sizeof path, &whole, &g_err));
    REFUSED(emoe_shell_find(model, folder, &gpu, nullptr, sizeof path, &whole, &g_err));
    REFUSED(emoe_shell_find(model, folder, &gpu, path, 0, &whole, &g_err));
    REFUSED(emoe_shell_find(model, folder, &gpu, path, 3, &whole, &g_err));
    REFUSED(emoe_shell_find(model, folder, &gpu, path, sizeof path, nullptr, &g_err));
    REFUSED(emoe_shell_find(model, "/proc/nowhere", &gpu, path, sizeof path, &whole, &g_err));
    GIVEN(emoe_shell_find(model, folder, &gpu, path, sizeof path, &whole, &g_err));
    CHECK_EQ(whole, 0u);
    REFUSED(emoe_shell_make(model, nullptr, &gpu, path, sizeof path, &g_err));
    REFUSED(emoe_shell_make(model, folder, &gpu, path, 0, &g_err));
    REFUSED(emoe_shell_make(model, folder, &gpu, nullptr, sizeof path, &g_err));
    emoe_setup const cpu = shaped();
    GIVEN(emoe_shell_make(model, folder, &cpu, path, sizeof path, &g_err));
    CHECK_EQ(path[0] == 0, k_memory_shells); // none is needed
    REFUSED(emoe_shell_make(model, folder, nullptr, path, sizeof path, &g_err));
    GIVEN(emoe_shell_make(model, folder, &gpu, path, sizeof path, &g_err));
    GIVEN(emoe_shell_check(model, path, nullptr));

    emoe_setup setup = shaped();
    auto sizes = zeros<emoe_context_sizes>();
    wrong_sizes<emoe_setup>([&](emoe_setup *s) { return emoe_context_measure(model, path, s, &sizes, &g_err); }, setup);
    wrong_sizes<emoe_context_sizes>(
        [&](emoe_context_sizes *s) { return emoe_context_measure(model, path, &setup, s, &g_err); });
    if (k_memory_shells)
        GIVEN(emoe_context_measure(model, nullptr, &setup, &sizes, &g_err));
    else
        REFUSED_AS(emoe_context_measure(model, nullptr, &setup, &sizes, &g_err), EMOE_ERR_UNSUPPORTED);
    REFUSED(emoe_context_measure(model, nowhere.c_str(), &setup, &sizes, &g_err));
    auto plan = zeros<emoe_plan>();
    emoe_engine *engine = nullptr;
    for (emoe_setup const &s : garbage_setups()) {
        REFUSED(emoe_context_measure(model, path, &s, &sizes, &g_err));
        REFUSED(emoe_plan_make(model, folder, &s, &plan, &g_err));
        REFUSED(emoe_engine_open(model, path, &s, 0, &engine, &g_err));
    }
    for (uint32_t emoe_setup::*const field : {&emoe_setup::n_ctx, &emoe_setup::n_ubatch, &emoe_setup::n_threads})
        for (uint32_t const value : {0u, UINT32_MAX}) {
            emoe_setup s = setup;
            s.*field = value;
            REFUSED(emoe_context_measure(model, path, &s, &sizes, &g_err));
            REFUSED(emoe_engine_open(model, path, &s, 0, &engine, &g_err));
        }
    emoe_setup no_gpu = setup;
    no_gpu.device = k_garbage;
    REFUSED(emoe_engine_open(model, path, &no_gpu, 0, &engine, &g_err));
    uint32_t const expert = 0;
    emoe_setup no_device = setup; // an expert for a GPU, and no GPU
    no_device.gpu_experts = &expert;
    no_device.n_gpu_expert = 1;
    REFUSED(emoe_engine_open(model, path, &no_device, 0, &engine, &g_err));
    wrong_sizes<emoe_setup>([&](emoe_setup *s) { return emoe_engine_open(model, path, s, 0, &engine, &g_err); }, setup);
    if (!k_memory_shells)
        REFUSED_AS(emoe_engine_open(model, nullptr, &setup, 0, &engine, &g_err), EMOE_ERR_UNSUPPORTED);
    GIVEN(emoe_engine_open(model, k_memory_shells ? nullptr : path, &setup, 0, &engine, &g_err));
    emoe_engine_close(engine);
    engine = nullptr;
    REFUSED(emoe_engine_open(model, nowhere.c_str(), &setup, 0, &engine, &g_err));
    REFUSED(emoe_engine_open(model, path_in(folder, "no.gguf").c_str(), &setup, 0, &engine, &g_err));
    REFUSED(emoe_engine_open(model, path, &setup, 0, nullptr, &g_err));
    CHECK(engine == nullptr);

    setup.memory = 1;
    REFUSED_AS(emoe_plan_make(model, folder, &setup, &plan, &g_err), EMOE_ERR_MEMORY);
    CHECK(plan.smallest_bytes > 1);
    setup.memory = uint64_t{1} << 40;
    wrong_sizes<emoe_plan>([&](emoe_plan *p) { return emoe_plan_make(model, folder, &setup, p, &g_err); });
    wrong_sizes<emoe_setup>([&](emoe_setup *s) { return emoe_plan_make(model, folder, s, &plan, &g_err); }, setup);
    REFUSED(emoe_plan_make(model, nullptr, &setup, &plan, &g_err));
}

void an_engine_stands_garbage(emoe_engine *engine, const char *folder) {
    int32_t const tokens[] = {1, 2, 3}, no_token = INT32_MAX, negative = -1;
    REFUSED(emoe_engine_decode(engine, nullptr, 1, 0, &g_err));
    REFUSED(emoe_engine_decode(engine, tokens, 0, 0, &g_err));
    REFUSED_AS(emoe_engine_decode(engine, tokens, UINT32_MAX, 0, &g_err), EMOE_ERR_CONTEXT);
    REFUSED(emoe_engine_decode(engine, tokens, UINT32_MAX, 1, &g_err));
    REFUSED(emoe_engine_decode(engine, &no_token, 1, 0, &g_err));
    REFUSED(emoe_engine_decode(engine, &negative, 1, 0, &g_err));
    REFUSED(emoe_engine_verify(engine, nullptr, 1, &g_err));
    REFUSED(emoe_engine_verify(engine, tokens, 0, &g_err));
    REFUSED(emoe_engine_verify(engine, tokens, UINT32_MAX, &g_err));
    uint32_t const sequences[2] = {0, 1};
    REFUSED(emoe_engine_select(engine, 1, &g_err));
    REFUSED(emoe_engine_select(engine, UINT32_MAX, &g_err));
    REFUSED(emoe_engine_step(engine, nullptr, tokens, 1, &g_err));
    REFUSED(emoe_engine_step(engine, sequences, nullptr, 1, &g_err));
    REFUSED(emoe_engine_step(engine, sequences, tokens, 0, &g_err));
    REFUSED(emoe_engine_step(engine, sequences, tokens, 2, &g_err));
    CHECK(emoe_engine_sequence_text(engine, 1) == nullptr);
    CHECK(emoe_engine_sequence_text(engine, 0) == emoe_engine_text(engine));
    REFUSED(emoe_engine_rewind(engine, UINT32_MAX, &g_err));
    std::vector<uint8_t> bytes(256, 0x5a);
    uint64_t n_bytes = 0;
    REFUSED(emoe_engine_state_get(engine, nullptr, k_huge, &n_bytes, &g_err));
    REFUSED(emoe_engine_state_get(engine, bytes.data(), 1, &n_bytes, &g_err));
    REFUSED(emoe_engine_state_get(engine, bytes.data(), bytes.size(), nullptr, &g_err));
    uint64_t picture = 0;
    uint32_t n_token = 0;
    REFUSED(emoe_engine_picture_add(engine, nullptr, bytes.data(), bytes.size(), &picture, &g_err));
    REFUSED(emoe_engine_picture_add(engine, k_nowhere, nullptr, 1, &picture, &g_err));
    REFUSED(emoe_engine_picture_add(engine, k_nowhere, bytes.data(), bytes.size(), nullptr, &g_err));
    REFUSED(emoe_engine_picture_add(engine, k_nowhere, bytes.data(), bytes.size(), &picture, &g_err));
    REFUSED(emoe_engine_picture_tokens(engine, k_garbage, nullptr, 0, &n_token, &g_err));
    REFUSED(emoe_engine_picture_tokens(engine, k_garbage, nullptr, 0, nullptr, &g_err));
    REFUSED(emoe_engine_picture_decode(engine, k_garbage, 0, &g_err));
    emoe_engine_picture_forget(engine, k_garbage);
    REFUSED(emoe_engine_state_set(engine, nullptr, 1, &g_err));
    REFUSED(emoe_engine_state_set(engine, bytes.data(), 0, &g_err));
    REFUSED(emoe_engine_state_set(engine, bytes.data(), 1, &g_err));
    REFUSED(emoe_engine_state_set(engine, bytes.data(), bytes.size(), &g_err));
    CHECK_EQ(emoe_engine_state_bytes(engine), 0u);
    REFUSED(emoe_engine_checkpoint_get(engine, nullptr, k_huge, &n_bytes, &g_err));
    REFUSED(emoe_engine_checkpoint_get(engine, bytes.data(), 1, &n_bytes, &g_err));
    REFUSED(emoe_engine_checkpoint_get(engine, bytes.data(), bytes.size(), nullptr, &g_err));
    REFUSED(emoe_engine_checkpoint_set(engine, nullptr, 1, &g_err));
    REFUSED(emoe_engine_checkpoint_set(engine, bytes.data(), 0, &g_err));
    REFUSED(emoe_engine_checkpoint_set(engine, bytes.data(), bytes.size(), &g_err));
    CHECK_EQ(emoe_engine_checkpoint_bytes(engine), 0u);
    REFUSED(emoe_engine_set_cache_bytes(engine, 0, &g_err));
    GIVEN(emoe_engine_set_cache_bytes(engine, k_huge, &g_err));
    wrong_sizes<emoe_stats>([&](emoe_stats *s) { return emoe_engine_get_stats(engine, s, &g_err); });
    wrong_sizes<emoe_accuracy>([&](emoe_accuracy *a) { return emoe_engine_accuracy(engine, 0, a, &g_err); });
    auto accuracy = zeros<emoe_accuracy>();
    GIVEN(emoe_engine_accuracy(engine, UINT32_MAX, &accuracy, &g_err));
    CHECK_EQ(accuracy.n_used[0], 0u);
    CHECK_EQ(emoe_engine_resident(engine, UINT32_MAX), 0u);
    uint8_t state = 0xEE;
    CHECK_EQ(emoe_engine_experts(engine, UINT32_MAX, &state, 1), 0u);
    CHECK(emoe_engine_experts(engine, 0, &state, 1) > 1); // too little room: nothing is written
    CHECK_EQ(state, 0xEE);
    CHECK(emoe_engine_experts(engine, 0, nullptr, UINT32_MAX) > 1);
    float rate = 7;
    CHECK(emoe_engine_rates(engine, &rate, 1) > 1);
    CHECK(rate == 7);
    CHECK(emoe_engine_rates(engine, nullptr, k_huge) > 1);
    emoe_engine_warm_start(engine, nullptr, 5);
    emoe_engine_warm_start(engine, &rate, 1);
    emoe_engine_warm_start(engine, &rate, k_huge);
    REFUSED_AS(emoe_engine_trace(engine, k_nowhere, nullptr, &g_err), EMOE_ERR_IO);
    GIVEN(emoe_engine_trace(engine, path_in(folder, "trace").c_str(), nullptr, &g_err));
    GIVEN(emoe_engine_trace(engine, nullptr, nullptr, &g_err));
    emoe_engine_inject_fault(engine, k_garbage, 0);

    CHECK(emoe_collect_bytes(engine, UINT32_MAX) > emoe_collect_bytes(engine, 0));
    REFUSED(emoe_collect_noise(engine, 0, 1, nullptr, 0, &g_err)); // nothing is collected
    REFUSED(emoe_collect_read(engine, 0, EMOE_COLLECT_STATE, &rate, 1, &g_err));
    emoe_collect_end(engine);
    GIVEN(emoe_collect_begin(engine, 0, 0, &g_err));
    float values[5];
    REFUSED(emoe_collect_read(engine, UINT32_MAX, EMOE_COLLECT_STATE, values, 5, &g_err));
    REFUSED(emoe_collect_read(engine, 0, k_garbage, values, 5, &g_err));
    REFUSED(emoe_collect_read(engine, 0, EMOE_COLLECT_STATE, values, 4, &g_err));
    REFUSED(emoe_collect_read(engine, 0, EMOE_COLLECT_STATE, nullptr, 5, &g_err));
    REFUSED(emoe_collect_noise(engine, 0, std::nanf(""), nullptr, 0, &g_err));
    REFUSED(emoe_collect_noise(engine, 0, -1, nullptr, 0, &g_err));
    REFUSED(emoe_collect_noise(engine, 0, 1, nullptr, 1, &g_err));
    uint8_t const spared[2] = {};
    REFUSED(emoe_collect_noise(engine, 0, 1, spared, 2, &g_err)); // of other experts than there are
    GIVEN(emoe_collect_noise(engine, UINT32_MAX, 1, nullptr, 0, &g_err));
    uint8_t missing = 1;
    REFUSED(emoe_collect_skip(engine, values, &missing, 1, 1, &g_err)); // a model has more experts
    REFUSED(emoe_collect_skip(engine, nullptr, &missing, 1, 1, &g_err));
    GIVEN(emoe_collect_skip(engine, nullptr, nullptr, 0, std::nan(""), &g_err));
    CHECK(emoe_collect_skipped(engine) == 0);
    emoe_collect_end(engine);

    CHECK_EQ(emoe_engine_n_past(engine), 0u); // nothing of it was computed
    GIVEN(emoe_engine_decode(engine, tokens, 3, 0, &g_err));
    CHECK_EQ(emoe_engine_n_past(engine), 3u);
    CHECK(emoe_text_logits(emoe_engine_text(engine), 0) != nullptr);
    CHECK(emoe_text_logits(emoe_engine_text(engine), 1) == nullptr);
    emoe_engine_inject_fault(engine, EMOE_FAULT_FAIL, k_huge);
    emoe_engine_clear_cancel(engine);
    emoe_engine_cancel(engine);
    REFUSED_AS(emoe_engine_decode(engine, tokens, 1, 0, &g_err), EMOE_ERR_CANCELLED);
    emoe_engine_clear_cancel(engine);
    GIVEN(emoe_engine_decode(engine, tokens, 1, 0, &g_err));
    CHECK_EQ(emoe_engine_n_past(engine), 4u);
}

void an_engine(const emoe_model *model, const char *folder) {
    char path[4096];
    emoe_setup gpu = {}; // whose shell is a file
    gpu.struct_size = sizeof gpu;
    gpu.device = 1;
    GIVEN(emoe_shell_make(model, folder, &gpu, path, sizeof path, &g_err));
    emoe_setup setup = shaped();
    setup.n_outputs = UINT32_MAX; // more than a batch has
    emoe_engine *engine = nullptr;
    GIVEN(emoe_engine_open(model, path, &setup, 0, &engine, &g_err));
    if (!engine) return;
    CHECK_EQ(emoe_engine_n_ctx(engine), 256u);
    emoe_text *text = emoe_engine_text(engine);
    CHECK(text != nullptr && text == emoe_engine_text(engine));
    a_text_stands_garbage(text, false);
    an_engine_stands_garbage(engine, folder);
    a_sampler_stands_garbage(text);
    emoe_engine_close(engine);
}

void a_session(const char *gguf, const char *folder) {
    emoe_setup setup = shaped();
    auto plan = zeros<emoe_plan>();
    emoe_session *session = nullptr;
    setup.memory = 1;
    REFUSED_AS(emoe_session_open(gguf, folder, &setup, &session, &plan, &g_err), EMOE_ERR_MEMORY);
    CHECK(plan.smallest_bytes > 1);
    for (emoe_setup const &s : garbage_setups()) REFUSED(emoe_session_open(gguf, folder, &s, &session, &plan, &g_err));
    CHECK(session == nullptr);
    setup.n_sequence = 2;
    REFUSED(emoe_session_open(gguf, folder, &setup, &session, &plan, &g_err));
    setup.n_sequence = 0;
    setup.memory_kind = EMOE_BUDGET_AUTO;
    setup.n_outputs = 0;
    GIVEN(emoe_session_open(gguf, folder, &setup, &session, nullptr, &g_err));
    if (!session) return;
    auto const params = zeros<emoe_answer_params>();
    emoe_message const message = {"user", "hello"}, no_role = {nullptr, "hello"};
    const char *text = "unset";
    uint64_t n = 7;
    wrong_sizes<emoe_answer_params>(
        [&](emoe_answer_params *p) { return emoe_session_prompt(session, "a", 1, p, &g_err); });
    wrong_sizes<emoe_answer_params>(
        [&](emoe_answer_params *p) { return emoe_session_chat(session, &message, 1, "chatml", p, &g_err); });
    REFUSED(emoe_session_prompt(session, nullptr, 1, &params, &g_err));
    REFUSED(emoe_session_prompt(session, "a", k_huge, &params, &g_err));
    REFUSED(emoe_session_chat(session, nullptr, 1, "chatml", &params, &g_err));
    REFUSED(emoe_session_chat(session, &message, 0, "chatml", &params, &g_err));
    REFUSED(emoe_session_chat(session, &no_role, 1, "chatml", &params, &g_err));
    REFUSED_AS(emoe_session_chat(session, &message, 1, "no template", &params, &g_err), EMOE_ERR_UNSUPPORTED);
    auto stops = params;
    stops.n_stop = 1;
    REFUSED(emoe_session_prompt(session, "a", 1, &stops, &g_err));
    const char *const empty[] = {""}, *const none[] = {nullptr};
    for (auto const *stop : {empty, none}) {
        stops.stop = stop;
        REFUSED(emoe_session_prompt(session, "a", 1, &stops, &g_err));
    }
    wrong_sizes<emoe_sampler_params>([&](emoe_sampler_params *s) {
        auto p = params;
        p.sampler = s;
        return s ? emoe_session_prompt(session, "a", 1, &p, &g_err) : emoe_sampler_open(s, nullptr, &g_err);
    });
    REFUSED(emoe_session_next(session, nullptr, &n, &g_err));
    REFUSED(emoe_session_next(session, &text, nullptr, &g_err));
    GIVEN(emoe_session_next(session, &text, &n, &g_err)); // there is no answer
    CHECK(text == nullptr && n == 0);
    CHECK_EQ(emoe_session_finish(session), uint32_t{EMOE_FINISH_NONE});
    CHECK_EQ(emoe_session_tokens(session, nullptr, k_huge), 0u);
    REFUSED_AS(emoe_session_set_budget(session, 0, &g_err), EMOE_ERR_MEMORY);
    REFUSED(emoe_session_memory_warning(session, k_garbage, &g_err));
    wrong_sizes<emoe_plan>([&](emoe_plan *p) { return emoe_session_get_plan(session, p, &g_err); });

    GIVEN(emoe_session_prompt(session, "One, two,", 9, &params, &g_err));
    GIVEN(emoe_session_next(session, &text, &n, &g_err));
    CHECK(text != nullptr && n > 0);
    int32_t token = -7;
    CHECK(emoe_session_tokens(session, &token, 0) > 0); // too little room: nothing is written
    CHECK_EQ(token, -7);
    emoe_session_cancel(session);
    REFUSED_AS(emoe_session_next(session, &text, &n, &g_err), EMOE_ERR_CANCELLED);
    CHECK_EQ(emoe_text_n_vocab(emoe_engine_text(emoe_session_engine(session))) > 0, true);
    emoe_session_close(session);
}

} // namespace

void handles_of(const char *gguf, const char *folder) {
    a_text_alone(gguf);
    emoe_model *model = nullptr;
    GIVEN(emoe_model_open(gguf, &model, &g_err));
    REFUSED(emoe_model_open(gguf, nullptr, &g_err));
    if (!model) return;
    facts_of_a_model(model);
    shells_and_plans_of_a_model(model, folder);
    an_engine(model, folder);
    emoe_model_close(model);
    a_session(gguf, folder);
}
