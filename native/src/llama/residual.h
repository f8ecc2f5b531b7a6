// The residual stream of a layer, found from what its experts meet: what their output is added to, and so measured by.
#pragma once

#include <ggml.h>

#include <cmath>
#include <cstdint>

namespace emoe {

// What the norm before the experts takes: [n_embd, n_token] F32, which is added to their output later and so is still
// there. Null when the graph has another form.
inline const ggml_tensor *residual_of(const ggml_tensor *activations, uint32_t n_token) {
    ggml_tensor const *t = activations;
    for (int i = 0; i < 8 && t; i++, t = t->src[0]) {
        bool const norm = t->op == GGML_OP_RMS_NORM || t->op == GGML_OP_NORM;
        if (!norm && t->op != GGML_OP_RESHAPE && t->op != GGML_OP_VIEW && t->op != GGML_OP_MUL && t->op != GGML_OP_ADD)
            return nullptr;
        if (!norm) continue;
        ggml_tensor const *r = t->src[0];
        bool const fits = r && r->data && r->type == GGML_TYPE_F32 && r->nb[0] == sizeof(float) && r->ne[1] == n_token;
        return fits ? r : nullptr;
    }
    return nullptr;
}

// 1 / mean square of a token's row of it; 1 where there is none.
inline double inverse_square(const ggml_tensor *residual, uint32_t token) {
    if (!residual) return 1;
    auto const *x =
        reinterpret_cast<const float *>(static_cast<const char *>(residual->data) + token * residual->nb[1]);
    double sum = 0;
    for (int64_t i = 0; i < residual->ne[0]; i++) sum += double{x[i]} * double{x[i]};
    return 1 / (sum / static_cast<double>(residual->ne[0]) + 1e-12);
}

} // namespace emoe
