// A model opened for an app, inside a memory budget: messages in, text out. Built on the functions of
// edgemoe.h, as an app could be.
#pragma once

#include "budget/allowance.h"
#include "session/calls.h"
#include "text/stream.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emoe {

class Session {
public:
    // known: how the budget is spent, or when it is too small what would do; may be null.
    Session(const std::string &path, const std::string &cache_dir, const emoe_setup &setup, emoe_plan *known);
    ~Session(); // ends what another thread computes

    void chat(const emoe_message *messages, uint32_t n_message, const char *chat_template,
              const emoe_answer_params &params);
    void prompt(const std::string &text, const emoe_answer_params &params);
    // The next text, valid until the next call; null when the answer has ended.
    const std::string *next();
    uint32_t finish() const { return finish_; }
    const std::vector<int32_t> &tokens() const { return tokens_; }
    void cancel();

    void set_budget(uint64_t budget_bytes) { allowance_->spend(budget_bytes); }
    void memory_warning(uint32_t level) { allowance_->warn(level); }
    emoe_plan plan() const { return allowance_->plan(); }
    emoe_engine *engine() const { return engine_.get(); }

private:
    struct Answer; // under way

    std::unique_lock<std::mutex> exclusive();
    std::vector<int32_t> tokenize(const std::string &text, bool add_special);
    std::string piece(int32_t token, bool special) const;
    void begin(const std::vector<int32_t> &prompt, std::vector<std::string> stop, const emoe_answer_params &params);
    void become(const std::vector<int32_t> &prompt);
    void append(const int32_t *tokens, size_t n);

    EnginePtr engine_;
    emoe_text *text_ = nullptr; // the engine's
    std::unique_ptr<Allowance> allowance_;
    std::string chat_template_; // of the file, empty when it has none
    uint32_t n_ctx_ = 0;
    std::vector<int32_t> tokens_; // those that the engine holds
    size_t unchecked_ = 0;        // tokens since the last look at the process's memory
    std::unique_ptr<Answer> answer_;
    std::string shown_; // what next() has returned
    uint32_t finish_ = EMOE_FINISH_NONE;
    std::mutex busy_; // held while something is computed
    std::atomic<bool> cancelled_{false};
};

} // namespace emoe
