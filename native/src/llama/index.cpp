#include "llama/index.h"

#include "base/error.h"
#include "io/file.h"
#include "llama/kernels.h"
#include "llama/log.h"

#include <llama.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/stat.h>

namespace emoe {

namespace {

// Order in which llama.cpp's common MoE block multiplies (build_moe_ffn): up before gate, down last.
constexpr const char *k_roles[] = {"gate_up", "up", "gate", "down"};

// "blk.3.ffn_up_exps.weight" -> 3, "exps", "up". The shapes of all routed expert tensors that go through
// MUL_MAT_ID; "chexps" are GroveMoE's second set.
bool parse_expert_name(const std::string &name, uint32_t *layer, std::string *family, std::string *role) {
    unsigned n = 0;
    int used = 0;
    if (sscanf(name.c_str(), "blk.%u.ffn_%n", &n, &used) != 1 || used == 0) return false;
    std::string const rest = name.substr(static_cast<size_t>(used));
    for (const char *r : k_roles)
        for (const char *f : {"exps", "chexps"})
            if (rest == std::string(r) + "_" + f + ".weight") {
                *layer = n;
                *role = r;
                *family = f;
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

// Path, size, mtime and the first MiB of the header: a file that was replaced or edited gets another identity.
uint64_t hash_file(uint64_t h, const std::string &path) {
    char *real = realpath(path.c_str(), nullptr);
    std::string const name = real ? real : path;
    free(real);
    h = hash_bytes(h, name.data(), name.size());
    struct stat st = {};
    if (stat(path.c_str(), &st) == 0) {
        h = hash_bytes(h, &st.st_size, sizeof st.st_size);
#if defined(__APPLE__)
        h = hash_bytes(h, &st.st_mtimespec, sizeof st.st_mtimespec);
#else
        h = hash_bytes(h, &st.st_mtim.tv_sec, sizeof st.st_mtim.tv_sec);
        h = hash_bytes(h, &st.st_mtim.tv_nsec, sizeof st.st_mtim.tv_nsec);
#endif
    }
    std::vector<char> head(1 << 20);
    if (FILE *f = fopen(path.c_str(), "rb")) {
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
    File const file(path, true); // exists, is a file, may be read
    *file_bytes = file.size();
    char magic[4] = {};
    if (FILE *f = fopen(path.c_str(), "rb")) {
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

void add_layers(ModelIndex *index) {
    // (block, family) -> matrices by role
    std::map<std::pair<uint32_t, std::string>, std::map<std::string, TensorInfo const *>> groups;
    for (TensorInfo const &t : index->experts) {
        uint32_t layer = 0;
        std::string family, role;
        parse_expert_name(t.name, &layer, &family, &role);
        groups[{layer, family}][role] = &t;
    }
    Layout &layout = index->layout;
    for (auto const &group : groups) {
        ExpertLayer layer;
        layer.layer = group.first.first;
        layer.first = layout.n_expert_total;
        std::vector<TensorInfo const *> tensors;
        for (const char *role : k_roles) {
            auto const it = group.second.find(role);
            if (it == group.second.end()) continue;
            TensorInfo const &t = *it->second;
            Matrix m;
            m.name = t.name;
            m.role = role;
            m.n_col = static_cast<uint32_t>(t.ne[0]);
            m.n_row = static_cast<uint32_t>(t.ne[1]);
            layer.matrices.push_back(m);
            tensors.push_back(&t);
        }
        if (tensors.size() > k_max_matrix || !group.second.count("down"))
            fail(EMOE_ERR_UNSUPPORTED, "block %u has an unknown set of expert matrices (`%s` and %zu more)",
                 layer.layer, tensors.front()->name.c_str(), tensors.size() - 1);
        layer.n_expert = static_cast<uint32_t>(tensors.front()->ne[2]);
        for (TensorInfo const *t : tensors) {
            if (t->ne[2] != layer.n_expert)
                fail(EMOE_ERR_FORMAT, "`%s` has %lld experts, `%s` %u", t->name.c_str(),
                     static_cast<long long>(t->ne[2]), tensors.front()->name.c_str(), layer.n_expert);
            if (!can_compute(t->type))
                fail(EMOE_ERR_UNSUPPORTED,
                     "`%s` has type %s, which this build of llama.cpp cannot multiply by on the CPU", t->name.c_str(),
                     ggml_type_name(t->type));
            if (t->bytes / layer.n_expert > UINT32_MAX / 2)
                fail(EMOE_ERR_UNSUPPORTED,
                     "one expert of `%s` is %llu bytes, more than the 2 GiB that one read can bring", t->name.c_str(),
                     static_cast<unsigned long long>(t->bytes / layer.n_expert));
        }
        for (uint32_t e = 0; e < layer.n_expert; e++)
            for (TensorInfo const *t : tensors) {
                Slice s;
                s.bytes = static_cast<uint32_t>(t->bytes / layer.n_expert);
                s.offset = t->offset + uint64_t{e} * s.bytes;
                s.file = t->file;
                s.type = static_cast<uint16_t>(t->type);
                layer.slices.push_back(s);
            }
        layout.n_expert_total += layer.n_expert;
        layout.layers.push_back(std::move(layer));
    }
}

} // namespace

bool parse_router_name(const std::string &name, uint32_t *block) {
    int end = 0;
    return sscanf(name.c_str(), "blk.%u.ffn_gate_inp.weight%n", block, &end) == 1 &&
           end == static_cast<int>(name.size());
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

void check_unchanged(const ModelIndex &index) {
    if (identity_of(index.layout.paths) != index.identity)
        fail(EMOE_ERR_IO, "`%s` has changed since it was opened", index.layout.paths.front().c_str());
}

std::unique_ptr<ModelIndex> index_model(const std::string &path) {
    AssertionGuard const guard;
    auto index = std::make_unique<ModelIndex>();
    uint64_t bytes = 0;
    GgufPtr given = open_gguf(path, &bytes);
    Layout &layout = index->layout;
    layout.paths = split_set(path, given.get());
    index->identity = identity_of(layout.paths);
    std::vector<TensorInfo> tensors;
    for (size_t i = 0; i < layout.paths.size(); i++) {
        GgufPtr g = layout.paths[i] == path ? std::move(given) : open_gguf(layout.paths[i], &bytes);
        if (layout.paths[i] == path) bytes = File(path, true).size();
        if (layout.paths.size() > 1 &&
            (split_number(g.get(), "split.no") != i || split_number(g.get(), "split.count") != layout.paths.size()))
            fail(EMOE_ERR_FORMAT, "`%s` says it is part %u of %u, not %zu of %zu: the files are not of one set",
                 layout.paths[i].c_str(), split_number(g.get(), "split.no") + 1u, split_number(g.get(), "split.count"),
                 i + 1, layout.paths.size());
        collect_tensors(g.get(), static_cast<uint16_t>(i), layout.paths[i], bytes, &tensors);
        index->file_bytes += bytes;
        if (i == 0) index->meta = std::move(g);
    }
    int64_t const count_key = gguf_find_key(index->meta.get(), "split.tensors.count");
    if (layout.paths.size() > 1 && count_key >= 0 &&
        gguf_get_kv_type(index->meta.get(), count_key) == GGUF_TYPE_INT32 &&
        gguf_get_val_i32(index->meta.get(), count_key) != static_cast<int64_t>(tensors.size()))
        fail(EMOE_ERR_FORMAT, "the split set of `%s` holds %zu tensors, its header says %d", path.c_str(),
             tensors.size(), gguf_get_val_i32(index->meta.get(), count_key));

    if (!meta_text(index->meta.get(), "general.architecture", &index->architecture))
        fail(EMOE_ERR_FORMAT, "`%s` does not name its architecture (key `general.architecture`)", path.c_str());
    if (!meta_text(index->meta.get(), "general.name", &index->name)) index->name = path.substr(path.rfind('/') + 1);

    bool untied = false;
    for (TensorInfo &t : tensors) {
        uint32_t layer = 0;
        std::string family, role;
        untied = untied || t.name == "output.weight";
        if (parse_expert_name(t.name, &layer, &family, &role) && t.ne[2] > 1) {
            index->expert_bytes += t.bytes;
            index->experts.push_back(std::move(t));
        } else {
            index->dense_bytes += t.bytes;
            index->dense.push_back(std::move(t));
        }
    }
    if (index->experts.empty())
        fail(EMOE_ERR_UNSUPPORTED, "`%s` is a dense model (%s): it has no routed experts to stream", path.c_str(),
             index->architecture.c_str());
    index->dense_token_bytes = index->dense_bytes;
    for (TensorInfo const &t : index->dense)
        if (untied && t.name == "token_embd.weight") index->dense_token_bytes -= t.bytes;

    add_layers(index.get());
    for (TensorInfo const &t : index->dense) {
        uint32_t block = 0;
        if (!parse_router_name(t.name, &block)) continue;
        auto const n = static_cast<uint32_t>(t.ne[0]);
        if (index->n_router_input != 0 && index->n_router_input != n) {
            index->n_router_input = 0;
            break;
        }
        index->n_router_input = n;
    }
    layout.n_expert_used = static_cast<uint32_t>(index->number("expert_used_count", 0));
    if (layout.n_expert_used == 0)
        fail(EMOE_ERR_FORMAT, "`%s` does not say how many experts a token uses (key `%s.expert_used_count`)",
             path.c_str(), index->architecture.c_str());
    index->alignment = 512;
    index->direct_io = true;
    for (std::string const &p : layout.paths) {
        File const file(p, false);
        index->alignment = std::max(index->alignment, file.alignment());
        index->direct_io = index->direct_io && file.direct();
    }
    place_experts(&layout, index->alignment);
    for (ExpertLayer const &layer : layout.layers) {
        uint64_t bytes_of_layer = 0;
        for (Slice const &s : layer.slices) bytes_of_layer += s.bytes;
        index->token_bytes += bytes_of_layer / layer.n_expert * std::min(layout.n_expert_used, layer.n_expert);
    }
    return index;
}

} // namespace emoe
