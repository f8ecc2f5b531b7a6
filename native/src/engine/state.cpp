// A sequence's state as bytes: llama.cpp's own, behind a head that says whose they are and whether they have changed.
#include "base/error.h"
#include "engine/engine.h"
#include "llama/log.h"
#include "llama/stamp.h"

#include <algorithm>
#include <cstring>

namespace emoe {

namespace {

constexpr uint64_t k_magic[] = {0x32657461745365ULL, 0x316b6365684365ULL}; // "eState2", "eCheck1"
constexpr uint64_t k_mix = 0x9e3779b97f4a7c15ULL;

struct StateHead {
    uint64_t magic;
    uint64_t model; // what a state of another model or setup differs in
    uint64_t n_bytes;
    uint64_t n_past;
    uint64_t n_span; // of pictures, before llama.cpp's own
    uint64_t sum;
};

uint64_t magic_of(StatePart part) { return k_magic[static_cast<size_t>(part)]; }

llama_state_seq_flags flags_of(StatePart part) {
    return part == StatePart::checkpoint ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : LLAMA_STATE_SEQ_FLAGS_NONE;
}

// Not a secret, but fast: bytes that changed by accident give another sum.
uint64_t sum_of(const uint8_t *bytes, uint64_t n) {
    uint64_t sum = n;
    for (; n >= sizeof(uint64_t); bytes += sizeof(uint64_t), n -= sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        sum = (sum ^ word) * k_mix;
        sum ^= sum >> 29;
    }
    uint64_t rest = 0;
    memcpy(&rest, bytes, n);
    return (sum ^ rest) * k_mix;
}

} // namespace

uint64_t Engine::state_key() const {
    llama_context_params const p = context_params(setup_);
    float const rope[] = {p.rope_freq_base,   p.rope_freq_scale, p.yarn_ext_factor,
                          p.yarn_attn_factor, p.yarn_beta_fast,  p.yarn_beta_slow};
    uint64_t const whole[] = {identity_,     n_ctx_,          setup_.kv_type,
                              setup_.device, p.yarn_orig_ctx, static_cast<uint64_t>(p.rope_scaling_type + 1)};
    std::string const library = build_stamp();
    std::string bytes(reinterpret_cast<const char *>(rope), sizeof rope);
    bytes.append(reinterpret_cast<const char *>(whole), sizeof whole).append(library);
    return sum_of(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
}

// Of a sliding window llama.cpp writes no more than what the next token sees.
bool Engine::can_cut() const {
    return !llama_model_is_recurrent(model_.get()) && !llama_model_is_hybrid(model_.get()) &&
           llama_model_n_swa(model_.get()) == 0;
}

bool Engine::sees_before(const Sequence &sequence, llama_pos at) const {
    auto const window = static_cast<int64_t>(llama_model_n_swa(model_.get()));
    if (window == 0 || at == 0) return true;
    auto const place = static_cast<llama_seq_id>(sequence.place);
    int64_t const first = llama_memory_seq_pos_min(llama_get_memory(ctx_.get()), place);
    return first >= 0 && first <= std::max<int64_t>(0, int64_t{at} - window + 1);
}

uint64_t Engine::state_bytes(StatePart part) {
    if (selected().n_past == 0 || (part == StatePart::checkpoint && can_cut())) return 0;
    AssertionGuard const guard;
    auto const place = static_cast<llama_seq_id>(selected().place);
    uint64_t const n = llama_state_seq_get_size_ext(ctx_.get(), place, flags_of(part));
    return n == 0 ? 0 : n + sizeof(StateHead) + selected().spans.size() * sizeof(Span);
}

uint64_t Engine::get_state(StatePart part, uint8_t *buf, uint64_t cap) {
    if (selected().n_past == 0) fail(EMOE_ERR_ARGUMENT, "the sequence is empty: it has no state");
    uint64_t const need = state_bytes(part);
    if (need == 0) fail(EMOE_ERR_UNSUPPORTED, "this model needs no checkpoints: it can be cut at any token");
    if (cap < need)
        fail(EMOE_ERR_ARGUMENT, "the state takes %llu bytes, there is room for %llu",
             static_cast<unsigned long long>(need), static_cast<unsigned long long>(cap));
    AssertionGuard const guard;
    Sequence const &sequence = selected();
    uint8_t *const body = buf + sizeof(StateHead);
    uint64_t const n_span_byte = sequence.spans.size() * sizeof(Span);
    if (n_span_byte != 0) memcpy(body, sequence.spans.data(), n_span_byte);
    uint64_t const n =
        llama_state_seq_get_data_ext(ctx_.get(), body + n_span_byte, need - sizeof(StateHead) - n_span_byte,
                                     static_cast<llama_seq_id>(sequence.place), flags_of(part));
    if (n == 0) fail(EMOE_ERR_INTERNAL, "llama.cpp gives no state of %u tokens", sequence.n_past);
    uint64_t const n_byte = n_span_byte + n;
    StateHead const head = {magic_of(part),  state_key(),           n_byte,
                            sequence.n_past, sequence.spans.size(), sum_of(body, n_byte)};
    memcpy(buf, &head, sizeof head);
    return n_byte + sizeof head;
}

void Engine::set_state(StatePart part, const uint8_t *buf, uint64_t n_bytes) {
    StateHead head = {};
    if (n_bytes >= sizeof head) memcpy(&head, buf, sizeof head);
    if (head.magic != magic_of(part) || head.n_bytes != n_bytes - sizeof head ||
        head.n_span > head.n_bytes / sizeof(Span))
        fail(EMOE_ERR_ARGUMENT, "these %llu bytes are no %s of a sequence", static_cast<unsigned long long>(n_bytes),
             part == StatePart::whole ? "state" : "checkpoint");
    if (head.model != state_key() || head.n_past == 0 || head.n_past > n_ctx_)
        fail(EMOE_ERR_ARGUMENT, "this state is of another model or context");
    if (head.sum != sum_of(buf + sizeof head, head.n_bytes)) fail(EMOE_ERR_ARGUMENT, "this state has changed");
    Sequence &sequence = selected();
    bool const whole = part == StatePart::whole;
    if (!whole && head.n_past > sequence.n_past)
        fail(EMOE_ERR_ARGUMENT, "this checkpoint is of %llu tokens, the sequence has %u",
             static_cast<unsigned long long>(head.n_past), sequence.n_past);
    AssertionGuard const guard;
    LogCapture const log;
    n_output_ = 0;
    sequence.n_row = 0;
    if (whole) forget_after(sequence, 0);
    auto const place = static_cast<llama_seq_id>(sequence.place);
    uint64_t const n_span_byte = head.n_span * sizeof(Span), n = head.n_bytes - n_span_byte;
    sequence.n_past = static_cast<uint32_t>(head.n_past);
    sequence.spans.resize(head.n_span);
    if (head.n_span != 0) memcpy(sequence.spans.data(), buf + sizeof head, n_span_byte);
    std::optional<llama_pos> const at = position(sequence, sequence.n_past);
    llama_memory_t const memory = llama_get_memory(ctx_.get());
    // Behind a checkpoint what can be cut is: the rest is what the checkpoint has.
    if (!at ||
        llama_state_seq_set_data_ext(ctx_.get(), buf + sizeof head + n_span_byte, n, place, flags_of(part)) != n ||
        (!whole && !llama_memory_seq_rm(memory, place, *at, -1)) || llama_memory_seq_pos_max(memory, place) >= *at) {
        forget_after(sequence, 0);
        fail(EMOE_ERR_INTERNAL, "llama.cpp refuses the state: %s", log.last_error("no reason given").c_str());
    }
}

} // namespace emoe
