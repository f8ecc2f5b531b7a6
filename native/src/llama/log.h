// llama.cpp's log, which is process-wide: filtered, searched for errors and sizes, and used as the one signal that
// llama.cpp gives between opening a file and mapping it (see shell.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace emoe {

void set_log_level(uint32_t level);
// A line of a library's log (level: ggml_log_level), on its way to who listens.
void log_callback_entry(int level, const char *text);

// While one is alive on this thread, a failed assertion of ggml or llama.cpp throws EMOE_ERR_FORMAT instead of ending
// the process: what a file says must never do that. For this thread only: a computation with threads of its own is not
// guarded, so the first one of a model has none (engine/engine.cpp).
class AssertionGuard {
public:
    AssertionGuard();
    ~AssertionGuard();
    AssertionGuard(const AssertionGuard &) = delete;
    AssertionGuard &operator=(const AssertionGuard &) = delete;

private:
    bool outer_;
};

// While one is alive this thread's log lines are collected. Installs our callback in llama.cpp.
class LogCapture {
public:
    // on_line: called for each line as it is logged, on this thread. May be empty.
    explicit LogCapture(std::function<void(const std::string &)> on_line = {});
    ~LogCapture();
    LogCapture(const LogCapture &) = delete;
    LogCapture &operator=(const LogCapture &) = delete;

    const std::string &text() const { return text_; }
    // The last error that llama.cpp reported, on one line; `otherwise` when there was none.
    std::string last_error(const std::string &otherwise) const;

private:
    friend void log_callback_entry(int level, const char *text);
    std::function<void(const std::string &)> on_line_;
    std::string text_;
    std::string partial_;
    std::string errors_;
    LogCapture *outer_;
};

} // namespace emoe
