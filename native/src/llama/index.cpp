#include "llama/index.h"

#include "base/error.h"
#include "base/paths.h"
#include "io/file.h"
#include "llama/kernels.h"
#include "llama/log.h"
#include "llama/overrides.h"
#include "llama/refusals.h"

#include <llama.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>

namespace emoe {

namespace {

// Order in which llama.cpp's common MoE block multiplies (build_moe_ffn): up before gate, down last.
constexpr const char *k_roles[] = {"gate_up", "up", "gate", "down"};

// Version of the per-expert tensors that we read (docs/format.md).
constexpr uint64_t k_format_version = 1;
constexpr const char *k_key_format = "edgemoe.format.version";

// Experts of a layer: eight times what any published model has. More is no model, and would cost memory by itself.
constexpr uint32_t k_most_experts = 4096;

// What a routed expert tensor's name says. Those that go through MUL_MAT_ID hold all experts of a matrix
// ("blk.3.ffn_up_exps.weight"; "chexps" are GroveMoE's second set); files of ours may hold each expert in a tensor of
// its own ("blk.3.ffn_up_exps.17.weight").
struct ExpertName {
    uint32_t layer = 0;
    std::string family;  // "exps"
    std::string role;    // "up"
    int64_t expert = -1; // -1: all of them
};

// A number as people write it: no sign, no leading zero, at most 6 digits.
bool parse_number(const std::string &text, uint32_t *value) {
    if (text.empty() || text.size() > 6 || (text.size() > 1 && text[0] == '0')) return false;
    if (text.find_first_not_of("0123456789") != std::string::npos) return false;
    *value = static_cast<uint32_t>(strtoul(text.c_str(), nullptr, 10));
    return true;
}

// "blk.3.ffn_norm.weight": block 3, and "ffn_norm.weight".
bool parse_block(const std::string &name, uint32_t *block, std::string *rest) {
    size_t const dot = name.find('.', 4);
    if (name.compare(0, 4, "blk.") != 0 || dot == std::string::npos) return false;
    *rest = name.substr(dot + 1);
    return parse_number(name.substr(4, dot - 4), block);
}

// "17.weight": 17.
bool parse_numbered_weight(const std::string &end, uint32_t *number) {
    constexpr size_t k_suffix = sizeof ".weight" - 1;
    return end.size() > k_suffix && end.compare(end.size() - k_suffix, k_suffix, ".weight") == 0 &&
           parse_number(end.substr(0, end.size() - k_suffix), number);
}

bool parse_expert_name(const std::string &name, ExpertName *parsed) {
    std::string rest;
    if (!parse_block(name, &parsed->layer, &rest)) return false;
    for (const char *role : k_roles)
        for (const char *family : {"exps", "chexps"}) {
            std::string const stem = std::string("ffn_") + role + "_" + family + ".";
            if (rest.compare(0, stem.size(), stem) != 0) continue;
            std::string const end = rest.substr(stem.size());
            uint32_t expert = 0;
            if (end == "weight")
                parsed->expert = -1;
            else if (parse_numbered_weight(end, &expert))
                parsed->expert = expert;
            else
                return false;
            parsed->role = role;
            parsed->family = family;
            return true;
        }
    return false;
}

// A tensor of files from before April 2024: one expert as "blk.0.ffn_gate.3.weight".
bool is_old_expert(const std::string &name) {
    uint32_t block = 0, expert = 0;
    std::string rest;
    if (!parse_block(name, &block, &rest)) return false;
    for (const char *role : {"gate", "up", "down"}) {
        std::string const stem = std::string("ffn_") + role + ".";
        if (rest.compare(0, stem.size(), stem) == 0 && parse_numbered_weight(rest.substr(stem.size()), &expert))
            return true;
    }
    return false;
}

constexpr uint64_t k_hash_start = 14695981039346656037u;

uint64_t hash_bytes(uint64_t h, const void *data, size_t n) { // FNV-1a
    auto const *p = static_cast<const unsigned char *>(data);
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}

// Path, size, times, inode and the first MiB of the header: a file that was replaced or edited gets another identity.
uint64_t hash_file(uint64_t h, const std::string &path) {
    std::string const name = real_path(path);
    h = hash_bytes(h, name.data(), name.size());
    FileStamp stamp;
    if (stamp_of(path, &stamp))
        for (auto const value : {stamp.size, stamp.inode, static_cast<uint64_t>(stamp.modified_ns),
                                 static_cast<uint64_t>(stamp.changed_ns)})
            h = hash_bytes(h, &value, sizeof value);
    std::vector<char> head(1 << 20);
    if (FILE *f = open_stream(path, "rb")) {
        size_t const n = fread(head.data(), 1, head.size(), f);
        fclose(f);
        h = hash_bytes(h, head.data(), n);
    }
    return h;
}

uint64_t identity_of(const std::vector<std::string> &paths) {
    uint64_t h = k_hash_start;
    for (std::string const &path : paths) h = hash_file(h, path);
    return h;
}

GgufPtr open_gguf(const std::string &path, uint64_t *file_bytes) {
    File const file(path, FileAccess::buffered); // exists, is a file, may be read
    *file_bytes = file.size();
    char magic[4] = {};
    if (FILE *f = open_stream(path, "rb")) {
        if (fread(magic, 1, 4, f) != 4) memset(magic, 0, 4);
        fclose(f);
    }
    if (memcmp(magic, "GGUF", 4) != 0)
        fail(EMOE_ERR_FORMAT, "`%s` is not a GGUF file: it does not begin with \"GGUF\"", path.c_str());
    LogCapture const log;
    gguf_init_params params = {};
    params.no_alloc = true;
    GgufPtr g(gguf_init_from_file(path.c_str(), params));
    if (!g)
        fail(EMOE_ERR_FORMAT, "the header of `%s` cannot be read: %s", path.c_str(),
             log.last_error("truncated or corrupted").c_str());
    return g;
}

void collect_tensors(const gguf_context *g, uint16_t file, const std::string &path, uint64_t file_bytes,
                     std::vector<TensorInfo> *out) {
    uint64_t const base = gguf_get_data_offset(g);
    for (int64_t i = 0; i < gguf_get_n_tensors(g); i++) {
        TensorInfo t;
        t.name = gguf_get_tensor_name(g, i);
        t.type = gguf_get_tensor_type(g, i);
        memcpy(t.ne, gguf_get_tensor_ne(g, i), sizeof t.ne);
        t.file = file;
        t.offset = base + gguf_get_tensor_offset(g, i);
        t.bytes = gguf_get_tensor_size(g, i);
        if (t.offset > file_bytes || t.bytes > file_bytes - t.offset)
            fail(EMOE_ERR_FORMAT, "`%s` is truncated: tensor `%s` ends at byte %llu, the file at %llu", path.c_str(),
                 t.name.c_str(), static_cast<unsigned long long>(t.offset + t.bytes),
                 static_cast<unsigned long long>(file_bytes));
        out->push_back(std::move(t));
    }
}

uint16_t split_number(const gguf_context *g, const char *key) {
    int64_t const id = gguf_find_key(g, key);
    return id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_UINT16 ? gguf_get_val_u16(g, id) : uint16_t{0};
}

uint64_t meta_number(const gguf_context *g, const char *key) {
    int64_t const id = gguf_find_key(g, key);
    return id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_UINT32 ? gguf_get_val_u32(g, id) : 0;
}

// All files of the set that path belongs to, in order.
std::vector<std::string> split_set(const std::string &path, const gguf_context *g) {
    uint16_t const n = split_number(g, "split.count");
    if (n <= 1) return {path};
    char prefix[PATH_MAX];
    if (llama_split_prefix(prefix, sizeof prefix, path.c_str(), split_number(g, "split.no"), n) == 0)
        fail(EMOE_ERR_FORMAT, "`%s` is part %u of %u, but its name does not end in -%05u-of-%05u.gguf", path.c_str(),
             split_number(g, "split.no") + 1u, n, split_number(g, "split.no") + 1u, n);
    std::vector<std::string> paths;
    for (uint16_t i = 0; i < n; i++) {
        char name[PATH_MAX];
        llama_split_path(name, sizeof name, prefix, i, n);
        paths.emplace_back(name);
    }
    return paths;
}

// All experts of one matrix, in one tensor or in one each.
struct Stack {
    TensorInfo const *whole = nullptr;
    std::map<uint32_t, TensorInfo const *> single; // by expert

    TensorInfo const &any() const { return whole ? *whole : *single.begin()->second; }
    uint64_t n_expert() const { return whole ? static_cast<uint64_t>(whole->ne[2]) : single.size(); }
    TensorInfo const &tensor(uint32_t expert) const { return whole ? *whole : *single.at(expert); }
    Slice slice(uint32_t expert) const {
        TensorInfo const &t = tensor(expert);
        Slice s;
        s.bytes = static_cast<uint32_t>(t.bytes / static_cast<uint64_t>(t.ne[2]));
        s.offset = t.offset + (whole ? uint64_t{expert} * s.bytes : 0);
        s.file = t.file;
        s.type = static_cast<uint16_t>(t.type);
        return s;
    }
};
// (block, family) -> matrices by role
using Groups = std::map<std::pair<uint32_t, std::string>, std::map<std::string, Stack>>;

std::string stack_name(const ExpertName &name) {
    return "blk." + std::to_string(name.layer) + ".ffn_" + name.role + "_" + name.family + ".weight";
}

Groups group_experts(const std::vector<TensorInfo> &tensors) {
    Groups groups;
    for (TensorInfo const &t : tensors) {
        ExpertName name;
        parse_expert_name(t.name, &name);
        Stack &stack = groups[{name.layer, name.family}][name.role];
        bool const fresh = name.expert < 0 ? stack.whole == nullptr && stack.single.empty()
                                           : stack.whole == nullptr &&
                                                 stack.single.emplace(static_cast<uint32_t>(name.expert), &t).second;
        if (!fresh) fail(EMOE_ERR_FORMAT, "`%s` holds experts that another tensor holds too", t.name.c_str());
        if (name.expert < 0) stack.whole = &t;
    }
    return groups;
}

void check_stack(const Stack &stack, const std::string &name) {
    if (!stack.whole && stack.single.rbegin()->first + uint64_t{1} != stack.single.size())
        fail(EMOE_ERR_FORMAT, "`%s` has %zu experts, and one of them has number %u", name.c_str(), stack.single.size(),
             stack.single.rbegin()->first);
    uint64_t const n = stack.whole ? 1 : stack.single.size();
    for (uint32_t e = 0; e < n; e++) {
        TensorInfo const &t = stack.tensor(e);
        TensorInfo const &first = stack.any();
        if (t.ne[0] != first.ne[0] || t.ne[1] != first.ne[1])
            fail(EMOE_ERR_FORMAT, "`%s` is %lld x %lld, `%s` %lld x %lld", t.name.c_str(),
                 static_cast<long long>(t.ne[0]), static_cast<long long>(t.ne[1]), first.name.c_str(),
                 static_cast<long long>(first.ne[0]), static_cast<long long>(first.ne[1]));
        if (!can_compute(t.type))
            fail(EMOE_ERR_UNSUPPORTED, "`%s` has type %s, which this build of llama.cpp cannot multiply by on the CPU",
                 t.name.c_str(), ggml_type_name(t.type));
        for (int64_t const length : t.ne)
            if (length <= 0)
                fail(EMOE_ERR_FORMAT, "`%s` has a dimension of %lld", t.name.c_str(), static_cast<long long>(length));
        if (t.ne[0] > UINT32_MAX || t.ne[1] > UINT32_MAX || t.bytes / static_cast<uint64_t>(t.ne[2]) > UINT32_MAX / 2)
            fail(EMOE_ERR_UNSUPPORTED, "one expert of `%s` is %llu bytes, more than the 2 GiB that one read can bring",
                 t.name.c_str(), static_cast<unsigned long long>(t.bytes / static_cast<uint64_t>(t.ne[2])));
    }
}

void add_layers(ModelIndex *index, const std::vector<TensorInfo> &tensors) {
    Layout &layout = index->layout;
    for (auto const &group : group_experts(tensors)) {
        ExpertLayer layer;
        layer.layer = group.first.first;
        layer.first = layout.n_expert_total;
        std::vector<Stack const *> stacks;
        for (const char *role : k_roles) {
            auto const it = group.second.find(role);
            if (it == group.second.end()) continue;
            TensorInfo const &t = it->second.any();
            Matrix m;
            ExpertName name;
            parse_expert_name(t.name, &name);
            m.name = stack_name(name);
            m.role = role;
            check_stack(it->second, m.name);
            m.n_col = static_cast<uint32_t>(t.ne[0]);
            m.n_row = static_cast<uint32_t>(t.ne[1]);
            layer.matrices.push_back(m);
            stacks.push_back(&it->second);
        }
        if (stacks.size() > k_max_matrix || !group.second.count("down"))
            fail(EMOE_ERR_UNSUPPORTED, "block %u has an unknown set of expert matrices (`%s` and %zu more)",
                 layer.layer, layer.matrices.front().name.c_str(), stacks.size() - 1);
        if (stacks.front()->n_expert() > k_most_experts)
            fail(EMOE_ERR_UNSUPPORTED, "`%s` has %llu experts, this version takes at most %u in a layer",
                 layer.matrices.front().name.c_str(), static_cast<unsigned long long>(stacks.front()->n_expert()),
                 k_most_experts);
        layer.n_expert = static_cast<uint32_t>(stacks.front()->n_expert());
        for (size_t m = 0; m < stacks.size(); m++) {
            if (stacks[m]->n_expert() != layer.n_expert)
                fail(EMOE_ERR_FORMAT, "`%s` has %llu experts, `%s` %u", layer.matrices[m].name.c_str(),
                     static_cast<unsigned long long>(stacks[m]->n_expert()), layer.matrices.front().name.c_str(),
                     layer.n_expert);
            // What llama.cpp is told: one tensor of all experts. It never looks at bytes or type.
            TensorInfo declared = stacks[m]->any();
            declared.name = layer.matrices[m].name;
            declared.ne[2] = layer.n_expert;
            (layer.layer < index->n_block ? index->experts : index->unused).push_back(declared);
        }
        if (layer.layer >= index->n_block) continue;
        for (uint32_t e = 0; e < layer.n_expert; e++)
            for (Stack const *stack : stacks) layer.slices.push_back(stack->slice(e));
        layout.n_expert_total += layer.n_expert;
        layout.layers.push_back(std::move(layer));
    }
}

// The headers of all files of a set: metadata, tensors, identity.
std::vector<TensorInfo> read_headers(const std::string &path, ModelIndex *index) {
    uint64_t given_bytes = 0;
    GgufPtr given = open_gguf(path, &given_bytes);
    std::vector<std::string> const &paths = index->layout.paths = split_set(path, given.get());
    index->identity = index->file_identity = identity_of(paths);
    std::vector<TensorInfo> tensors;
    for (size_t i = 0; i < paths.size(); i++) {
        uint64_t bytes = given_bytes;
        GgufPtr g = paths[i] == path ? std::move(given) : open_gguf(paths[i], &bytes);
        if (paths.size() > 1 &&
            (split_number(g.get(), "split.no") != i || split_number(g.get(), "split.count") != paths.size()))
            fail(EMOE_ERR_FORMAT, "`%s` says it is part %u of %u, not %zu of %zu: the files are not of one set",
                 paths[i].c_str(), split_number(g.get(), "split.no") + 1u, split_number(g.get(), "split.count"), i + 1,
                 paths.size());
        collect_tensors(g.get(), static_cast<uint16_t>(i), paths[i], bytes, &tensors);
        index->file_bytes += bytes;
        if (i == 0) index->meta = std::move(g);
    }
    int64_t const count_key = gguf_find_key(index->meta.get(), "split.tensors.count");
    if (paths.size() > 1 && count_key >= 0 && gguf_get_kv_type(index->meta.get(), count_key) == GGUF_TYPE_INT32 &&
        gguf_get_val_i32(index->meta.get(), count_key) != static_cast<int64_t>(tensors.size()))
        fail(EMOE_ERR_FORMAT, "the split set of `%s` holds %zu tensors, its header says %d", path.c_str(),
             tensors.size(), gguf_get_val_i32(index->meta.get(), count_key));
    return tensors;
}

[[noreturn]] void fail_without_experts(const ModelIndex &index, const std::string &path) {
    for (TensorInfo const &t : index.dense)
        if (is_old_expert(t.name))
            fail(EMOE_ERR_UNSUPPORTED,
                 "`%s` is a Mixture-of-Experts file in the form of before April 2024 (a tensor for each expert, `%s`), "
                 "which llama.cpp no longer reads",
                 path.c_str(), t.name.c_str());
    fail(EMOE_ERR_UNSUPPORTED, "`%s` is a dense model (%s): it has no routed experts to stream", path.c_str(),
         index.architecture.c_str());
}

// Blocks that a graph computes: the last ones may only guess tokens ahead. Those hold what joins a token to a state; where
// none does, the metadata speaks of blocks that were left out (DeepSeek V4 of some converters).
uint32_t computed_blocks(const ModelIndex &index, const std::vector<TensorInfo> &tensors) {
    uint64_t const n = index.number("block_count", UINT32_MAX), n_ahead = index.number("nextn_predict_layers", 0);
    uint64_t const n_before = n_ahead < n ? n - n_ahead : n;
    std::string const joins = "blk." + std::to_string(n_before) + ".nextn.eh_proj.weight";
    bool const guesses =
        std::any_of(tensors.begin(), tensors.end(), [&](TensorInfo const &t) { return t.name == joins; });
    return static_cast<uint32_t>(std::min<uint64_t>(guesses ? n_before : n, UINT32_MAX));
}

bool is_unused(const TensorInfo &t, const ModelIndex &index) {
    uint32_t block = 0;
    std::string rest;
    return parse_block(t.name, &block, &rest) && block >= index.n_block;
}

// What llama.cpp's graphs only look up by row: embeddings, of tokens or of runs of them. An embedding that is the output
// matrix as well is multiplied by.
bool is_table(const TensorInfo &t, bool untied) {
    bool const named = t.name == "per_layer_token_embd.weight" || (untied && t.name == "token_embd.weight");
    ggml_type_traits const *traits = ggml_get_type_traits(t.type);
    return named && t.ne[0] > 0 && t.ne[1] > 0 && t.ne[2] == 1 && t.ne[3] == 1 &&
           (t.type == GGML_TYPE_F32 || traits->to_float != nullptr);
}

// Takes the experts out; the rest is the index's dense part.
std::vector<TensorInfo> take_experts(std::vector<TensorInfo> tensors, const std::string &path, ModelIndex *index) {
    uint64_t const format = meta_number(index->meta.get(), k_key_format);
    if (format > k_format_version)
        fail(EMOE_ERR_UNSUPPORTED, "`%s` has version %llu of the per-expert format, this build reads version %llu",
             path.c_str(), static_cast<unsigned long long>(format), static_cast<unsigned long long>(k_format_version));
    index->n_block = computed_blocks(*index, tensors);
    bool untied = false;
    std::vector<TensorInfo> experts;
    for (TensorInfo &t : tensors) {
        ExpertName name;
        untied = untied || t.name == "output.weight";
        bool const named = parse_expert_name(t.name, &name);
        bool const single = named && name.expert >= 0 && t.ne[2] == 1 && t.ne[3] == 1;
        if (single && format == 0)
            fail(EMOE_ERR_FORMAT, "`%s` holds one expert, but the file does not say of which version (key `%s`)",
                 t.name.c_str(), k_key_format);
        if (single || (named && name.expert < 0 && t.ne[2] > 1)) {
            if (!is_unused(t, *index)) index->expert_bytes += t.bytes;
            experts.push_back(std::move(t));
        } else if (is_unused(t, *index)) {
            index->unused.push_back(std::move(t));
        } else {
            index->dense_bytes += t.bytes;
            index->dense.push_back(std::move(t));
        }
    }
    if (index->expert_bytes == 0) fail_without_experts(*index, path);
    for (TensorInfo &t : index->dense) {
        t.is_table = is_table(t, untied);
        if (t.is_table) index->table_bytes += t.bytes;
    }
    index->dense_token_bytes = index->dense_bytes - index->table_bytes;
    return experts;
}

// Length of a router's input; 0 when the layers differ or have none by the usual name.
uint32_t router_input_of(const std::vector<TensorInfo> &dense) {
    uint32_t found = 0;
    for (TensorInfo const &t : dense) {
        uint32_t block = 0;
        if (!parse_router_name(t.name, &block)) continue;
        auto const n = static_cast<uint32_t>(t.ne[0]);
        if (found != 0 && found != n) return 0;
        found = n;
    }
    return found;
}

void place_for_files(ModelIndex *index) {
    index->alignment = 512;
    index->direct_io = true;
    for (std::string const &path : index->layout.paths) {
        File const file(path, FileAccess::direct);
        index->alignment = std::max(index->alignment, file.alignment());
        index->direct_io = index->direct_io && file.direct();
    }
    place_experts(&index->layout, index->alignment);
}

} // namespace

bool parse_router_name(const std::string &name, uint32_t *block) {
    std::string rest;
    return parse_block(name, block, &rest) && rest == "ffn_gate_inp.weight";
}

bool meta_text(const gguf_context *g, const char *key, std::string *text) {
    int64_t const id = gguf_find_key(g, key);
    if (id < 0) return false;
    switch (gguf_get_kv_type(g, id)) {
    case GGUF_TYPE_STRING: *text = gguf_get_val_str(g, id); return true;
    case GGUF_TYPE_BOOL: *text = gguf_get_val_bool(g, id) ? "true" : "false"; return true;
    case GGUF_TYPE_UINT8: *text = std::to_string(gguf_get_val_u8(g, id)); return true;
    case GGUF_TYPE_INT8: *text = std::to_string(gguf_get_val_i8(g, id)); return true;
    case GGUF_TYPE_UINT16: *text = std::to_string(gguf_get_val_u16(g, id)); return true;
    case GGUF_TYPE_INT16: *text = std::to_string(gguf_get_val_i16(g, id)); return true;
    case GGUF_TYPE_UINT32: *text = std::to_string(gguf_get_val_u32(g, id)); return true;
    case GGUF_TYPE_INT32: *text = std::to_string(gguf_get_val_i32(g, id)); return true;
    case GGUF_TYPE_UINT64: *text = std::to_string(gguf_get_val_u64(g, id)); return true;
    case GGUF_TYPE_INT64: *text = std::to_string(gguf_get_val_i64(g, id)); return true;
    case GGUF_TYPE_FLOAT32: *text = std::to_string(gguf_get_val_f32(g, id)); return true;
    case GGUF_TYPE_FLOAT64: *text = std::to_string(gguf_get_val_f64(g, id)); return true;
    default: return false;
    }
}

uint64_t ModelIndex::number(const char *key, uint64_t otherwise) const {
    std::string const full = architecture + "." + key;
    int64_t const id = gguf_find_key(meta.get(), full.c_str());
    if (id < 0) return otherwise;
    if (gguf_get_kv_type(meta.get(), id) == GGUF_TYPE_ARRAY) {
        gguf_type const type = gguf_get_arr_type(meta.get(), id);
        if (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32) return otherwise;
        auto const *values = static_cast<const int32_t *>(gguf_get_arr_data(meta.get(), id));
        int32_t most = 0;
        for (size_t i = 0; i < gguf_get_arr_n(meta.get(), id); i++) most = std::max(most, values[i]);
        return static_cast<uint64_t>(most);
    }
    std::string text;
    if (!meta_text(meta.get(), full.c_str(), &text)) return otherwise;
    return strtoull(text.c_str(), nullptr, 10);
}

uint64_t ModelIndex::n_vocab() const {
    int64_t const tokens = gguf_find_key(meta.get(), "tokenizer.ggml.tokens");
    bool const listed = tokens >= 0 && gguf_get_kv_type(meta.get(), tokens) == GGUF_TYPE_ARRAY;
    return listed ? gguf_get_arr_n(meta.get(), tokens) : number("vocab_size", 0);
}

void check_unchanged(const ModelIndex &index) {
    if (identity_of(index.layout.paths) != index.file_identity)
        fail(EMOE_ERR_IO, "`%s` has changed since it was opened", index.layout.paths.front().c_str());
}

std::unique_ptr<ModelIndex> index_model(const std::string &path, const std::vector<std::string> &overrides) {
    AssertionGuard const guard;
    auto index = std::make_unique<ModelIndex>();
    std::vector<TensorInfo> tensors = read_headers(path, index.get());
    for (std::string const &text : overrides) {
        apply_override(text, index->meta.get());
        index->identity = hash_bytes(index->identity, text.c_str(), text.size() + 1);
    }
    if (!meta_text(index->meta.get(), "general.architecture", &index->architecture))
        fail(EMOE_ERR_FORMAT, "`%s` does not name its architecture (key `general.architecture`)", path.c_str());
    if (!meta_text(index->meta.get(), "general.name", &index->name)) index->name = path.substr(path.rfind('/') + 1);
    check_metadata(*index);
    add_layers(index.get(), take_experts(std::move(tensors), path, index.get()));
    index->n_router_input = router_input_of(index->dense);
    Layout &layout = index->layout;
    layout.n_expert_used = static_cast<uint32_t>(index->number("expert_used_count", 0));
    if (layout.n_expert_used == 0)
        fail(EMOE_ERR_FORMAT, "`%s` does not say how many experts a token uses (key `%s.expert_used_count`)",
             path.c_str(), index->architecture.c_str());
    place_for_files(index.get());
    for (ExpertLayer const &layer : layout.layers) {
        uint64_t bytes_of_layer = 0;
        for (Slice const &s : layer.slices) bytes_of_layer += s.bytes;
        index->token_bytes += bytes_of_layer / layer.n_expert * std::min(layout.n_expert_used, layer.n_expert);
    }
    return index;
}

} // namespace emoe
