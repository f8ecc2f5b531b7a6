// The session of edgemoe.h implemented: checks of arguments, exceptions to statuses, nothing else.
#include "session/session.h"
#include "base/guard.h"
#include "capi/handles.h"
#include "llama/chat_template.h"

#include <algorithm>
#include <cstring>

using namespace emoe;

struct emoe_session {
    std::unique_ptr<Session> session;
};

namespace {

// The parameters, checked; a null sampler is greedy.
emoe_answer_params read_answer(const emoe_answer_params *params) {
    static constexpr emoe_sampler_params k_greedy = {sizeof k_greedy, 0, 0, 0, 0, 0, 0, 0};
    emoe_answer_params p = read_struct(params, "emoe_answer_params");
    if (!p.sampler) p.sampler = &k_greedy;
    return p;
}

Session &session_of(const emoe_session *session) {
    check_pointer(session, "session");
    return *session->session;
}

} // namespace

emoe_status emoe_session_open(const char *path, const char *cache_dir, const emoe_setup *setup, emoe_session **out,
                              emoe_plan *plan, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(path, "path");
        check_pointer(cache_dir, "cache_dir");
        check_pointer(out, "out");
        if (plan) check_struct(plan, "emoe_plan");
        emoe_setup const s = read_setup(setup, false);
        auto session = std::make_unique<emoe_session>();
        write_plan(plan, [&](emoe_plan *known) {
            session->session = std::make_unique<Session>(path, cache_dir, s, known);
            return session->session->plan();
        });
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
    return guarded(err, [&] { session_of(session).chat(messages, n_message, chat_template, read_answer(params)); });
}

emoe_status emoe_session_prompt(emoe_session *session, const char *text, uint64_t text_bytes,
                                const emoe_answer_params *params, emoe_error *err) {
    return guarded(err, [&] {
        check_pointer(text, "text");
        session_of(session).prompt(std::string(text, text_bytes), read_answer(params));
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
    return session ? copy_out(session->session->tokens(), tokens, cap) : 0;
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
        write_struct(plan, session_of(session).plan());
    });
}

emoe_engine *emoe_session_engine(const emoe_session *session) { return session ? session->session->engine() : nullptr; }
