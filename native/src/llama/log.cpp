#include "llama/log.h"

#include "base/error.h"

#include <llama.h>

#include <atomic>
#include <cstdio>
#include <mutex>

namespace emoe {

namespace {
std::atomic<uint32_t> g_level{0};
thread_local LogCapture *t_capture = nullptr;
thread_local bool t_guarded = false;

// ggml calls this and then ends the process; thrown from here, it does not come to that.
void on_abort(const char *message) {
    if (!t_guarded) {
        fprintf(stderr, "%s\n", message);
        return;
    }
    std::string text = message; // "/build/path/gguf.cpp:145: GGML_ASSERT(...) failed"
    size_t const folder = text.rfind('/', text.find(": "));
    size_t const assertion = text.find("GGML_ASSERT");
    size_t const begin = assertion != std::string::npos ? assertion : folder != std::string::npos ? folder + 1 : 0;
    throw Error(EMOE_ERR_FORMAT, "the file is corrupted, or too new for this llama.cpp: " + text.substr(begin));
}
} // namespace

void log_callback_entry(int level, const char *text) {
    uint32_t const shown = g_level.load(std::memory_order_relaxed);
    if (shown >= 3 || (shown >= 2 && level == GGML_LOG_LEVEL_WARN) || (shown >= 1 && level == GGML_LOG_LEVEL_ERROR))
        fputs(text, stderr);
    LogCapture *capture = t_capture;
    if (!capture) return;
    capture->text_ += text;
    if (level == GGML_LOG_LEVEL_ERROR) capture->errors_ += text;
    capture->partial_ += text;
    if (capture->partial_.empty() || capture->partial_.back() != '\n') return;
    std::string line;
    std::swap(line, capture->partial_);
    if (capture->on_line_) capture->on_line_(line);
}

namespace {
void log_callback(ggml_log_level level, const char *text, void *) { log_callback_entry(level, text); }
} // namespace

void set_log_level(uint32_t level) {
    g_level.store(level, std::memory_order_relaxed);
    llama_log_set(log_callback, nullptr);
}

AssertionGuard::AssertionGuard() : outer_(t_guarded) {
    static std::once_flag once;
    std::call_once(once, [] { ggml_set_abort_callback(on_abort); });
    t_guarded = true;
}

AssertionGuard::~AssertionGuard() { t_guarded = outer_; }

LogCapture::LogCapture(std::function<void(const std::string &)> on_line)
    : on_line_(std::move(on_line)), outer_(t_capture) {
    llama_log_set(log_callback, nullptr); // again each time: another user of llama.cpp may have set its own
    t_capture = this;
}

LogCapture::~LogCapture() { t_capture = outer_; }

std::string LogCapture::last_error(const std::string &otherwise) const {
    // llama.cpp reports the cause first and "failed to load model" after it: the first line says most.
    size_t const end = errors_.find('\n');
    std::string line = errors_.substr(0, end);
    size_t const prefix = line.find(": ");
    if (prefix != std::string::npos && line.find(' ') > prefix) line.erase(0, prefix + 2); // the C++ function's name
    return line.empty() ? otherwise : line;
}

} // namespace emoe
