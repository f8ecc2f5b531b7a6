#include "llama/overrides.h"

#include "base/error.h"
#include "llama/index.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace emoe {

namespace {

// llama.cpp's own bound of a text (llama_model_kv_override).
constexpr size_t k_most_chars = 127;

// Of the file itself, and behind the architecture's name what gives tensors their shapes, or says which there are.
constexpr const char *k_file_keys[] = {"general.architecture", "general.alignment", "general.quantization_version"};
constexpr const char *k_shape_keys[] = {
    "block_count",
    "embedding_length",
    "embedding_length_out",
    "embedding_length_per_layer_input",
    "vocab_size",
    "feed_forward_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "expert_chunk_feed_forward_length",
    "leading_dense_block_count",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
    "nextn_predict_layers",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.group_count",
    "shortconv.l_cache",
    "full_attention_interval",
};

struct Override {
    std::string key, type, value;
};

Override parse(const std::string &text) {
    size_t const equals = text.find('=');
    size_t const colon = equals == std::string::npos ? std::string::npos : text.find(':', equals);
    if (equals == 0 || colon == std::string::npos)
        fail(EMOE_ERR_ARGUMENT, "`%s` overrides nothing: it is KEY=TYPE:VALUE, as in general.name=str:mine",
             text.c_str());
    Override o = {text.substr(0, equals), text.substr(equals + 1, colon - equals - 1), text.substr(colon + 1)};
    if (o.key.size() > k_most_chars || o.value.size() > k_most_chars)
        fail(EMOE_ERR_ARGUMENT, "`%s` is too long: keys and values have at most %zu bytes", text.c_str(), k_most_chars);
    return o;
}

void check_layout(const std::string &key, const std::string &architecture) {
    bool refused = key.compare(0, 6, "split.") == 0 || key.compare(0, 8, "edgemoe.") == 0;
    for (const char *file_key : k_file_keys) refused = refused || key == file_key;
    for (const char *shape_key : k_shape_keys) refused = refused || key == architecture + "." + shape_key;
    if (refused)
        fail(EMOE_ERR_UNSUPPORTED, "`%s` says how the file's tensors are laid out: it cannot be overridden",
             key.c_str());
}

const char *type_name(gguf_type type) {
    switch (type) {
    case GGUF_TYPE_STRING: return "str";
    case GGUF_TYPE_BOOL: return "bool";
    case GGUF_TYPE_FLOAT32:
    case GGUF_TYPE_FLOAT64: return "float";
    case GGUF_TYPE_ARRAY: return "array";
    default: return "int";
    }
}

// Of a key that the file has not: the type that llama.cpp reads such keys with.
gguf_type new_type(const Override &o) {
    if (o.type == "str") return GGUF_TYPE_STRING;
    if (o.type == "bool") return GGUF_TYPE_BOOL;
    if (o.type == "float") return GGUF_TYPE_FLOAT32;
    return !o.value.empty() && o.value[0] == '-' ? GGUF_TYPE_INT32 : GGUF_TYPE_UINT32;
}

[[noreturn]] void fail_value(const Override &o) {
    fail(EMOE_ERR_ARGUMENT, "`%s` is no %s that `%s` can be", o.value.c_str(), o.type.c_str(), o.key.c_str());
}

template <typename T>
T whole(const Override &o) {
    errno = 0;
    char *end = nullptr;
    long long const value = strtoll(o.value.c_str(), &end, 10);
    bool const fits = value >= 0 ? static_cast<unsigned long long>(value) <=
                                       static_cast<unsigned long long>(std::numeric_limits<T>::max())
                                 : value >= static_cast<long long>(std::numeric_limits<T>::min());
    if (o.value.empty() || *end != 0 || errno != 0 || !fits) fail_value(o);
    return static_cast<T>(value);
}

double number(const Override &o) {
    char *end = nullptr;
    double const value = strtod(o.value.c_str(), &end);
    if (o.value.empty() || *end != 0 || !std::isfinite(value)) fail_value(o);
    return value;
}

bool truth(const Override &o) {
    if (o.value != "true" && o.value != "false") fail_value(o);
    return o.value == "true";
}

void set(const Override &o, gguf_type type, gguf_context *meta) {
    const char *key = o.key.c_str();
    switch (type) {
    case GGUF_TYPE_STRING: gguf_set_val_str(meta, key, o.value.c_str()); break;
    case GGUF_TYPE_BOOL: gguf_set_val_bool(meta, key, truth(o)); break;
    case GGUF_TYPE_FLOAT32: gguf_set_val_f32(meta, key, static_cast<float>(number(o))); break;
    case GGUF_TYPE_FLOAT64: gguf_set_val_f64(meta, key, number(o)); break;
    case GGUF_TYPE_UINT8: gguf_set_val_u8(meta, key, whole<uint8_t>(o)); break;
    case GGUF_TYPE_INT8: gguf_set_val_i8(meta, key, whole<int8_t>(o)); break;
    case GGUF_TYPE_UINT16: gguf_set_val_u16(meta, key, whole<uint16_t>(o)); break;
    case GGUF_TYPE_INT16: gguf_set_val_i16(meta, key, whole<int16_t>(o)); break;
    case GGUF_TYPE_UINT32: gguf_set_val_u32(meta, key, whole<uint32_t>(o)); break;
    case GGUF_TYPE_INT32: gguf_set_val_i32(meta, key, whole<int32_t>(o)); break;
    case GGUF_TYPE_UINT64: gguf_set_val_u64(meta, key, whole<uint64_t>(o)); break;
    case GGUF_TYPE_INT64: gguf_set_val_i64(meta, key, whole<int64_t>(o)); break;
    default: break;
    }
}

// What a graph would fail at with an assertion.
void check_expert_count(const Override &o, const std::string &architecture, const gguf_context *meta) {
    std::string used, all;
    if (o.key != architecture + ".expert_used_count" || !meta_text(meta, o.key.c_str(), &used)) return;
    if (!meta_text(meta, (architecture + ".expert_count").c_str(), &all)) return;
    if (strtoll(used.c_str(), nullptr, 10) < 1 ||
        strtoll(used.c_str(), nullptr, 10) > strtoll(all.c_str(), nullptr, 10))
        fail(EMOE_ERR_ARGUMENT, "a token cannot use %s of %s experts (`%s`)", used.c_str(), all.c_str(), o.key.c_str());
}

} // namespace

void apply_override(const std::string &text, gguf_context *meta) {
    Override const o = parse(text);
    constexpr const char *k_types[] = {"int", "float", "bool", "str"};
    if (std::none_of(std::begin(k_types), std::end(k_types), [&](const char *known) { return o.type == known; }))
        fail(EMOE_ERR_ARGUMENT, "`%s` is no type of metadata: it is int, float, bool or str", o.type.c_str());
    std::string architecture;
    (void)meta_text(meta, "general.architecture", &architecture);
    check_layout(o.key, architecture);
    int64_t const id = gguf_find_key(meta, o.key.c_str());
    gguf_type const type = id < 0 ? new_type(o) : gguf_get_kv_type(meta, id);
    if (o.type != type_name(type))
        fail(EMOE_ERR_ARGUMENT, "`%s` is of type %s in the file: %s cannot take its place", o.key.c_str(),
             type_name(type), o.type.c_str());
    set(o, type, meta);
    check_expert_count(o, architecture, meta);
}

} // namespace emoe
