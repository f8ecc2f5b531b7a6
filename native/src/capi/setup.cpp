// What is asked for, checked: the one place that knows what a field of emoe_setup may be.
#include "base/guard.h"
#include "base/machine.h"
#include "budget/planner.h"
#include "cache/policy.h"
#include "capi/handles.h"
#include "llama/measure.h"
#include "pipeline/price.h"

namespace emoe {

namespace {

constexpr uint32_t k_max_threads = 512; // of ggml
constexpr uint32_t k_max_lanes = 64;
constexpr uint64_t k_million = 1000000;

void check_rope(const emoe_setup &s) {
    constexpr uint32_t k_known = 2 * EMOE_YARN_ORIG_CTX - 1;
    constexpr float k_most = 1e12f;
    if (s.rope_given > k_known) fail(EMOE_ERR_ARGUMENT, "unknown fields of RoPE in %#x", s.rope_given);
    auto const check = [&](uint32_t bit, float value, bool positive, const char *what) {
        if ((s.rope_given & bit) == 0) return;
        if (!(value >= 0 && value <= k_most) || (positive && value == 0))
            fail(EMOE_ERR_ARGUMENT, "%s of %g", what, static_cast<double>(value));
    };
    if ((s.rope_given & EMOE_ROPE_SCALING) != 0 && s.rope_scaling > k_max_rope_scaling)
        fail(EMOE_ERR_ARGUMENT, "unknown RoPE scaling %u", s.rope_scaling);
    check(EMOE_ROPE_FREQ_BASE, s.rope_freq_base, true, "a RoPE frequency base");
    check(EMOE_ROPE_FREQ_SCALE, s.rope_freq_scale, true, "a RoPE frequency scale");
    check(EMOE_YARN_EXT_FACTOR, s.yarn_ext_factor, false, "a YaRN extrapolation factor");
    check(EMOE_YARN_ATTN_FACTOR, s.yarn_attn_factor, true, "a YaRN attention factor");
    check(EMOE_YARN_BETA_FAST, s.yarn_beta_fast, true, "a YaRN beta");
    check(EMOE_YARN_BETA_SLOW, s.yarn_beta_slow, true, "a YaRN beta");
    if ((s.rope_given & EMOE_YARN_ORIG_CTX) != 0 && (s.yarn_orig_ctx == 0 || s.yarn_orig_ctx > INT32_MAX))
        fail(EMOE_ERR_ARGUMENT, "an original context of %u tokens", s.yarn_orig_ctx);
}

void check_shape(const emoe_setup &s) {
    if (s.n_ctx == 0) fail(EMOE_ERR_ARGUMENT, "a context of 0 tokens");
    if (s.n_ctx > INT32_MAX) fail(EMOE_ERR_ARGUMENT, "a context of %u tokens", s.n_ctx);
    if (s.n_ubatch == 0 || s.n_ubatch > s.n_ctx)
        fail(EMOE_ERR_ARGUMENT, "batches of %u tokens in a context of %u", s.n_ubatch, s.n_ctx);
    if (s.n_threads == 0) fail(EMOE_ERR_ARGUMENT, "0 threads");
    if (s.n_sequence > s.n_ubatch)
        fail(EMOE_ERR_ARGUMENT, "%u sequences in batches of %u tokens", s.n_sequence, s.n_ubatch);
}

void check_lossy(const emoe_setup &s) {
    if (s.lossy_nats == 0) return;
    if (!(s.lossy_nats >= k_least_price && s.lossy_nats <= k_most_price))
        fail(EMOE_ERR_ARGUMENT,
             "a price of %g nats a token: from %g on it can be kept (below, the first flipped routing costs more), and "
             "above %g little is left of the model; 0 is exact",
             s.lossy_nats, k_least_price, k_most_price);
    if (s.device != 0) fail(EMOE_ERR_UNSUPPORTED, "experts are left out at a price on the CPU alone, without a GPU");
    if (s.n_sequence > 1) fail(EMOE_ERR_UNSUPPORTED, "experts are left out at a price of one sequence alone");
    if (s.prefetch == EMOE_PREFETCH_ON)
        fail(EMOE_ERR_ARGUMENT, "what is left out at a price is not read ahead: leave prefetch on automatic, or off");
}

void check_access(const emoe_setup &s) {
    if (s.buffered > EMOE_READ_PAGE_CACHE) fail(EMOE_ERR_ARGUMENT, "unknown way to read %u", s.buffered);
    if (s.buffered != EMOE_READ_PAGE_CACHE) return;
    if (uint64_t const limit = cgroup_limit_bytes())
        fail(EMOE_ERR_UNSUPPORTED, "the page cache counts into the limit of this process's cgroup, %s: read without it",
             format_bytes(limit).c_str());
}

} // namespace

void check_memory(uint32_t kind, uint64_t memory) {
    if (kind > EMOE_BUDGET_AUTO) fail(EMOE_ERR_ARGUMENT, "unknown kind of memory %u", kind);
    if (kind == EMOE_BUDGET_SHARE && memory > k_million)
        fail(EMOE_ERR_ARGUMENT, "%llu millionths of what this process may use",
             static_cast<unsigned long long>(memory));
}

emoe_setup read_setup(const emoe_setup *setup, bool shaped) {
    emoe_setup s = read_struct(setup, "emoe_setup");
    if (s.n_outputs == 0) s.n_outputs = 1;
    s.kv_type = kv_type_of(s.kv_type);
    check_memory(s.memory_kind, s.memory);
    if (s.n_threads > k_max_threads) fail(EMOE_ERR_ARGUMENT, "%u threads: at most %u", s.n_threads, k_max_threads);
    if (s.policy >= k_n_policy) fail(EMOE_ERR_ARGUMENT, "unknown eviction policy %u", s.policy);
    if (s.prefetch > EMOE_PREFETCH_ON) fail(EMOE_ERR_ARGUMENT, "unknown prefetch mode %u", s.prefetch);
    if (s.reader > EMOE_READER_URING) fail(EMOE_ERR_ARGUMENT, "unknown reader %u", s.reader);
    if (s.n_sequence > EMOE_MAX_SEQUENCE)
        fail(EMOE_ERR_ARGUMENT, "%u sequences: at most %u", s.n_sequence, EMOE_MAX_SEQUENCE);
    if (s.n_read_lane > k_max_lanes)
        fail(EMOE_ERR_ARGUMENT, "%u reads at once: at most %u", s.n_read_lane, k_max_lanes);
    check_access(s);
    check_lossy(s);
    if (s.n_gpu_expert != 0) check_pointer(s.gpu_experts, "gpu_experts");
    check_rope(s);
    if (shaped) check_shape(s);
    return s;
}

} // namespace emoe
