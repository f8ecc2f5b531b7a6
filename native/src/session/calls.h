// edgemoe.h called from C++: statuses to exceptions, handles that close themselves. The session is built on the public
// interface alone, as any app could be.
#pragma once

#include "base/error.h"

#include <edgemoe.h>

#include <memory>

namespace emoe {

struct ModelClose {
    void operator()(emoe_model *m) const { emoe_model_close(m); }
};
struct EngineClose {
    void operator()(emoe_engine *e) const { emoe_engine_close(e); }
};
struct SamplerClose {
    void operator()(emoe_sampler *s) const { emoe_sampler_close(s); }
};
using ModelPtr = std::unique_ptr<emoe_model, ModelClose>;
using EnginePtr = std::unique_ptr<emoe_engine, EngineClose>;
using SamplerPtr = std::unique_ptr<emoe_sampler, SamplerClose>;

// call([&](emoe_error *err) { return emoe_...(..., err); }) throws what the status says.
template <typename F>
void call(F &&f) {
    emoe_error err = {};
    emoe_status const status = f(&err);
    if (status != EMOE_OK) throw Error(status, err.message);
}

// A metadata value as text; empty when it is absent.
inline std::string model_meta(const emoe_model *model, const char *key) {
    int64_t const n = emoe_model_meta(model, key, nullptr, 0);
    if (n <= 0) return "";
    std::string text(static_cast<size_t>(n) + 1, '\0');
    (void)emoe_model_meta(model, key, text.data(), text.size());
    text.resize(static_cast<size_t>(n));
    return text;
}

} // namespace emoe
