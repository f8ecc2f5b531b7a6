// Chat messages to a prompt, by llama.cpp's public llama_chat_apply_template: it recognises templates by their markup.
#pragma once

#include <edgemoe.h>

#include <string>

namespace emoe {

// source: Jinja text of a file, or a name that llama.cpp knows. Throws EMOE_ERR_UNSUPPORTED when it is not recognised.
std::string render_chat(const std::string &source, const emoe_message *messages, uint32_t n_message);

} // namespace emoe
