// libFuzzer: the calls of edgemoe.h that take what strangers write, with any bytes. The first byte says which.
#include <edgemoe.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

// The rest of the input, taken piece by piece; zeros when it is used up.
struct Input {
    const uint8_t *data;
    size_t n;
    template <typename T>
    T take() {
        T value = {};
        size_t const k = std::min(n, sizeof value);
        memcpy(&value, data, k);
        data += k;
        n -= k;
        return value;
    }
    std::string text(size_t most) {
        size_t const k = std::min({n, most, size_t{take<uint16_t>()}});
        std::string const found(reinterpret_cast<const char *>(data), std::min(k, n));
        data += found.size();
        n -= found.size();
        return found;
    }
    std::string rest() { return text(n); }
};

emoe_error g_err;

bool given(emoe_status status) {
    if (status != EMOE_OK && (g_err.message[0] == 0 || strchr(g_err.message, '\n'))) abort();
    g_err.message[0] = 0;
    return status == EMOE_OK;
}

template <typename T>
T zeros() {
    T t = {};
    t.struct_size = sizeof t;
    return t;
}

// A text stream gives valid UTF-8, never the stop text, and the same however its bytes are cut.
void a_stream(Input in) {
    std::string const stop = in.text(16), all = in.text(4096);
    const char *const stops[] = {stop.c_str()};
    uint64_t const bytes[] = {stop.size()};
    std::string said[2];
    for (int cut = 0; cut < 2; cut++) {
        emoe_stream *stream = nullptr;
        if (!given(emoe_stream_open(stops, bytes, stop.empty() ? 0 : 1, &stream, &g_err))) return;
        const char *text = nullptr;
        uint64_t n = 0;
        size_t const piece = cut ? 1 : std::max<size_t>(all.size(), 1);
        for (size_t i = 0; i < all.size(); i += piece) {
            if (!given(emoe_stream_feed(stream, all.data() + i, std::min(piece, all.size() - i), &text, &n, &g_err)))
                break;
            said[cut].append(text, n);
        }
        if (given(emoe_stream_finish(stream, &text, &n, &g_err))) said[cut].append(text, n);
        emoe_stream_close(stream);
    }
    if (said[0] != said[1]) abort();
    if (!stop.empty() && said[0].find(stop) != std::string::npos) abort();
}

void a_chat(Input in) {
    std::string const source = in.text(512), role = in.text(16), content = in.text(512);
    emoe_message const messages[] = {{role.c_str(), content.c_str()}, {"user", content.c_str()}};
    char buf[64];
    uint64_t n = 0;
    given(emoe_chat_render(source.c_str(), messages, 2, buf, sizeof buf, &n, &g_err));
    given(emoe_chat_render("chatml", messages, 2, buf, sizeof buf, &n, &g_err));
}

void a_policy(Input in) {
    std::vector<uint32_t> n_expert(1 + in.take<uint8_t>() % 4);
    for (uint32_t &n : n_expert) n = in.take<uint8_t>() % 9;
    emoe_policy *policy = nullptr;
    auto const n_layer = static_cast<uint32_t>(n_expert.size());
    if (!given(emoe_policy_open(in.take<uint8_t>() % 8, n_expert.data(), n_layer, in.take<uint8_t>() % 4, &policy,
                                &g_err)))
        return;
    while (in.n > 0) {
        uint32_t const layer = in.take<uint8_t>() % 5, n_token = in.take<uint8_t>();
        std::vector<uint32_t> experts, rows;
        std::vector<float> weights;
        for (uint32_t i = in.take<uint8_t>() % 5; i-- > 0;) {
            experts.push_back(in.take<uint8_t>() % 10);
            rows.push_back(in.take<uint8_t>());
            weights.push_back(in.take<float>());
        }
        given(emoe_policy_visit(policy, layer, n_token, experts.data(), rows.data(), weights.data(),
                                static_cast<uint32_t>(experts.size()), &g_err));
        std::vector<float> badness(40);
        given(emoe_policy_badness(policy, badness.data(), in.take<uint8_t>() % 40, &g_err));
    }
    emoe_policy_close(policy);
}

emoe_status sizes(void *user, uint32_t n_ctx, uint32_t n_ubatch, emoe_context_sizes *found) {
    Input in = *static_cast<Input *>(user);
    uint32_t const size = found->struct_size;
    *found = in.take<emoe_context_sizes>();
    found->struct_size = size;
    found->kv_bytes = found->kv_bytes % (uint64_t{n_ctx} * 1000 + 1) + n_ubatch;
    return EMOE_OK;
}

// Sums of any numbers: a plan never spends more than its budget, and what it calls the smallest budget opens.
void a_plan(Input in) {
    auto info = in.take<emoe_model_info>();
    info.struct_size = sizeof info;
    auto setup = in.take<emoe_setup>();
    setup.struct_size = sizeof setup;
    setup.gpu_experts = nullptr;
    setup.n_gpu_expert = 0;
    auto plan = zeros<emoe_plan>();
    if (given(emoe_plan_choose(&info, sizes, &in, &setup, &plan, &g_err)) &&
        (plan.cache_bytes > plan.budget_bytes || plan.margin_bytes > plan.budget_bytes))
        abort();
    auto speeds = in.take<emoe_speeds>();
    speeds.struct_size = sizeof speeds;
    auto prediction = zeros<emoe_prediction>();
    given(emoe_plan_predict(&info, in.take<double>(), &speeds, &prediction, &g_err));
    uint64_t bytes = 0;
    given(emoe_budget_bytes(in.take<uint8_t>() % 4, in.take<uint64_t>(), in.take<uint64_t>(), &bytes, &g_err));
}

void a_replay(Input in) {
    uint32_t const n_layer = 1 + in.take<uint8_t>() % 3, n_visit = in.take<uint8_t>() % 20;
    std::vector<uint32_t> n_expert(n_layer), layer(n_visit), n_token(n_visit), n_use(n_visit), expert, row;
    for (uint32_t &n : n_expert) n = in.take<uint8_t>() % 9;
    for (uint32_t v = 0; v < n_visit; v++) {
        layer[v] = in.take<uint8_t>() % 4;
        n_token[v] = in.take<uint8_t>();
        n_use[v] = in.take<uint8_t>() % 4;
        for (uint32_t i = 0; i < n_use[v]; i++) {
            expert.push_back(in.take<uint8_t>() % 10);
            row.push_back(in.take<uint8_t>());
        }
    }
    std::vector<float> const weight(expert.size() + 1, 0.5F);
    expert.resize(expert.size() + 1);
    row.resize(row.size() + 1);
    auto params = zeros<emoe_replay_params>();
    params.policy = in.take<uint8_t>() % 8;
    params.n_layer = n_layer;
    params.n_expert = n_expert.data();
    params.n_expert_used = in.take<uint8_t>() % 4;
    params.n_slot = in.take<uint8_t>() % 20;
    params.n_visit = n_visit;
    params.layer = layer.data();
    params.n_token = n_token.data();
    params.n_use = n_use.data();
    params.expert = expert.data();
    params.n_row = row.data();
    params.weight = weight.data();
    uint64_t uses = 0, misses = 0;
    if (given(emoe_replay(&params, &uses, &misses, &g_err)) && misses > uses) abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n == 0) return 0;
    Input const in = {data + 1, n - 1};
    switch (data[0] % 5) {
    case 0: a_stream(in); break;
    case 1: a_chat(in); break;
    case 2: a_policy(in); break;
    case 3: a_plan(in); break;
    default: a_replay(in);
    }
    return 0;
}
