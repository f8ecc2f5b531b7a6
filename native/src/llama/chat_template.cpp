#include "llama/chat_template.h"

#include "base/error.h"

#include <climits>
#include <llama.h>
#include <vector>

namespace emoe {

std::string render_chat(const std::string &source, const emoe_message *messages, uint32_t n_message) {
    if (n_message == 0) fail(EMOE_ERR_ARGUMENT, "there are no messages to answer");
    if (!messages) fail(EMOE_ERR_ARGUMENT, "messages is null");
    std::vector<llama_chat_message> chat(n_message);
    for (uint32_t i = 0; i < n_message; i++) {
        if (!messages[i].role || !messages[i].content)
            fail(EMOE_ERR_ARGUMENT, "message %u has no %s", i, messages[i].role ? "content" : "role");
        chat[i] = {messages[i].role, messages[i].content};
    }
    auto const apply = [&](char *buf, size_t cap) {
        return llama_chat_apply_template(source.c_str(), chat.data(), chat.size(), true, buf,
                                         static_cast<int32_t>(cap));
    };
    int32_t const n = apply(nullptr, 0);
    if (n < 0)
        fail(EMOE_ERR_UNSUPPORTED,
             "llama.cpp does not recognise the chat template `%.40s`%s; \"chatml\" can be asked for", source.c_str(),
             source.size() > 40 ? "..." : "");
    std::string text(static_cast<size_t>(n), '\0');
    if (n > 0) (void)apply(text.data(), text.size());
    return text;
}

} // namespace emoe
