#include "llama/refusals.h"

#include "base/error.h"
#include "llama/kernels.h"

#include <cmath>
#include <cstring>

namespace emoe {

namespace {

// The weight behind a source of a node: itself or what it is a view of. Null for what is computed.
const ggml_tensor *weight_of(const ggml_tensor *source) {
    ggml_tensor const *t = source && source->view_src ? source->view_src : source;
    return t && t->op == GGML_OP_NONE && ggml_get_name(t)[0] != 0 ? t : nullptr;
}

std::string of_type(const ggml_tensor *weight, const char *what) {
    return std::string("`") + ggml_get_name(weight) + "` has type " + ggml_type_name(weight->type) +
           ", which llama.cpp cannot " + what + " on the CPU";
}

bool is_small_float(ggml_type type) { return type == GGML_TYPE_F16 || type == GGML_TYPE_BF16; }

// Element by element: floats with floats of 32 bits or of their own type; to what is quantized, 32 bits may be added.
bool joins(const ggml_tensor *node) {
    ggml_type const a = node->src[0]->type, b = node->src[1]->type;
    if (b == GGML_TYPE_F32)
        return a == GGML_TYPE_F32 || is_small_float(a) || (node->op == GGML_OP_ADD && ggml_is_quantized(a));
    return a == b && is_small_float(a);
}

bool has_rows(ggml_type type) {
    if (type == GGML_TYPE_F32 || type == GGML_TYPE_I32 || is_small_float(type)) return true;
    return ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float != nullptr;
}

bool ends_with(const char *text, const char *end) {
    size_t const n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

} // namespace

void check_metadata(const ModelIndex &index) {
    gguf_context const *g = index.meta.get();
    for (int64_t i = 0; i < gguf_get_n_kv(g); i++) {
        gguf_type const type = gguf_get_kv_type(g, i);
        if (!ends_with(gguf_get_key(g, i), "epsilon") || (type != GGUF_TYPE_FLOAT32 && type != GGUF_TYPE_FLOAT64))
            continue;
        double const value = type == GGUF_TYPE_FLOAT32 ? double{gguf_get_val_f32(g, i)} : gguf_get_val_f64(g, i);
        if (!(value >= 0) || !std::isfinite(value))
            fail(EMOE_ERR_FORMAT, "`%s` says that its `%s` is %g: no norm can be computed with that",
                 index.layout.paths.front().c_str(), gguf_get_key(g, i), value);
    }
}

void check_model(const llama_model *model) {
    if (llama_model_is_diffusion(model))
        fail(EMOE_ERR_UNSUPPORTED, "this is a diffusion model: it does not write one token after another");
    if (llama_model_has_encoder(model) || !llama_model_has_decoder(model))
        fail(EMOE_ERR_UNSUPPORTED, "this model has an encoder: only models that write text from text alone are run");
    if (llama_vocab_type(llama_model_get_vocab(model)) == LLAMA_VOCAB_TYPE_NONE)
        fail(EMOE_ERR_UNSUPPORTED, "this model has no tokenizer (`tokenizer.ggml.model` is `no_vocab`)");
}

void check_context(const llama_context *ctx) {
    if (!llama_get_memory(ctx))
        fail(EMOE_ERR_UNSUPPORTED,
             "this model keeps no context: it makes embeddings, or fills in what is masked, but writes no text");
}

std::string no_columns(const llama_model *model, bool on_gpu) {
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model))
        return "its recurrent state cannot be taken back";
    if (on_gpu) return "a GPU rounds several tokens at once differently from one";
    // A window's cells are used again: which cell a token gets depends on how many come at once.
    if (llama_model_n_swa(model) != 0) return "it attends to a sliding window";
    return "";
}

void check_sequences(const llama_model *model, bool on_gpu) {
    std::string const why = no_columns(model, on_gpu);
    if (!why.empty()) fail(EMOE_ERR_UNSUPPORTED, "this model cannot answer several at once: %s", why.c_str());
}

std::string cannot_compute(const ggml_tensor *node) {
    ggml_tensor const *first = weight_of(node->src[0]), *second = weight_of(node->src[1]);
    switch (node->op) {
    case GGML_OP_MUL_MAT:
    case GGML_OP_MUL_MAT_ID:
        if (first && !can_compute(first->type)) return of_type(first, "multiply by");
        if (second && second->type != GGML_TYPE_F32 && second->type != GGML_TYPE_I32)
            return of_type(second, "take as activations");
        return "";
    case GGML_OP_ADD:
    case GGML_OP_SUB:
    case GGML_OP_MUL:
    case GGML_OP_DIV:
        if ((!first && !second) || joins(node)) return "";
        return of_type(second ? second : first, node->op == GGML_OP_ADD ? "add" : "scale by");
    case GGML_OP_GET_ROWS:
        if (first && !has_rows(first->type)) return of_type(first, "take rows of");
        return "";
    default: return "";
    }
}

} // namespace emoe
