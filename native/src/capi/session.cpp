// The session of edgemoe.h implemented: checks of arguments, exceptions to statuses, nothing else.
#include "llama/chat_template.h"
#include "session/session.h"
#include "base/guard.h"

#include <algorithm>
#include <cstring>

using namespace emoe;

struct emoe_session {
    std::unique_ptr<Session> session;
};

namespace {

// As guarded, and what a budget that is too small leaves in the plan.
template <typename F>
emoe_status guarded_plan(emoe_plan *plan, emoe_error *err, F &&f) {
    return guarded(err, [&] {
        if (plan) check_struct(plan, "emoe_plan");
        try {
            f();
        } catch (const BudgetError &e) {
            if (plan) plan->smallest_bytes = e.smallest_bytes;
            throw;
        }
    });
}

void check_params(const emoe_session_params *params) { check_struct(params, "emoe_session_params"); }

// The parameters, checked, with a sampler where none was given.
emoe_answer_params whole(const emoe_answer_params *params) {
    check_struct(params, "emoe_answer_params");
    emoe_answer_params p = *params;
    static constexpr emoe_sampler_params k_none = {};
    if (memcmp(&p.sampler, &k_none, sizeof k_none) == 0) {
        p.sampler.struct_size = sizeof p.sampler;
        p.sampler.top_p = 1; // off, and so is the next
        p.sampler.repeat_penalty = 1;
    }
    return p;
}

Session &session_of(const emoe_session *session) {
    check_pointer(session, "session");
    return *session->session;
}

} // namespace

emoe_status emoe_plan_make(const emoe_model *model, const char *cache_dir, const emoe_session_params *params,
                           emoe_plan *plan, emoe_error *err) {
    return guarded_plan(plan, err, [&] {
        check_pointer(model, "model");
        check_pointer(cache_dir, "cache_dir");
        check_pointer(plan, "plan");
        check_params(params);
        *plan = plan_session(model, cache_dir, *params);
    });
}

emoe_status emoe_session_open(const char *path, const char *cache_dir, const emoe_session_params *params,
                              emoe_session **out, emoe_plan *plan, emoe_error *err) {
    return guarded_plan(plan, err, [&] {
        check_pointer(path, "path");
        check_pointer(cache_dir, "cache_dir");
        check_pointer(out, "out");
        check_params(params);
        auto session = std::make_unique<emoe_session>();
        session->session = std::make_unique<Session>(path, cache_dir, *params);
        if (plan) *plan = session->session->plan();
        *out = session.release();
    });
}

void emoe_session_close(emoe_session *session) { delete session; }

emoe_status emoe_chat_render(const char *chat_template, const emoe_message *messages, uint32_t n_message, char *buf,
                             uint64_t cap, uint64_t *n_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(chat_template, "chat_template");
        check_pointer(n_bytes, "n_bytes");
        std::string const text = render_chat(chat_template, messages, n_message);
        *n_bytes = text.size();
        if (!buf || cap == 0) return;
        size_t const n = std::min<uint64_t>(text.size(), cap - 1);
        memcpy(buf, text.data(), n);
        buf[n] = 0;
    });
}

emoe_status emoe_session_chat(emoe_session *session, const emoe_message *messages, uint32_t n_message,
                              const char *chat_template, const emoe_answer_params *params, emoe_error *err) {
    return guarded(err, [&] { session_of(session).chat(messages, n_message, chat_template, whole(params)); });
}

emoe_status emoe_session_prompt(emoe_session *session, const char *text, uint64_t text_bytes,
                                const emoe_answer_params *params, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(text, "text");
        session_of(session).prompt(std::string(text, text_bytes), whole(params));
    });
}

emoe_status emoe_session_next(emoe_session *session, const char **text, uint64_t *text_bytes, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(text, "text");
        check_pointer(text_bytes, "text_bytes");
        const std::string *piece = session_of(session).next();
        *text = piece ? piece->c_str() : nullptr;
        *text_bytes = piece ? piece->size() : 0;
    });
}

uint32_t emoe_session_finish(const emoe_session *session) {
    return session ? session->session->finish() : EMOE_FINISH_NONE;
}

uint64_t emoe_session_tokens(const emoe_session *session, int32_t *tokens, uint64_t cap) {
    if (!session) return 0;
    std::vector<int32_t> const &held = session->session->tokens();
    if (tokens && held.size() <= cap) std::copy(held.begin(), held.end(), tokens);
    return held.size();
}

void emoe_session_cancel(emoe_session *session) {
    if (session) session->session->cancel();
}

emoe_status emoe_session_set_budget(emoe_session *session, uint64_t budget_bytes, emoe_error *err) {
    return guarded(err, [&] { session_of(session).set_budget(budget_bytes); });
}

emoe_status emoe_session_memory_warning(emoe_session *session, uint32_t level, emoe_error *err) {
    return guarded(err, [&] {
        if (level > EMOE_MEMORY_CRITICAL) fail(EMOE_ERR_ARGUMENT, "a memory warning of level %u", level);
        session_of(session).memory_warning(level);
    });
}

emoe_status emoe_session_get_plan(const emoe_session *session, emoe_plan *plan, emoe_error *err) {
    return guarded(err, [&] {
        check_struct(plan, "emoe_plan");
        *plan = session_of(session).plan();
    });
}

emoe_engine *emoe_session_engine(const emoe_session *session) { return session ? session->session->engine() : nullptr; }
