// What is in a GGUF: metadata, dense tensors, and the layout of the routed experts. Headers only, never tensor data.
//
// Experts are stacked, as llama.cpp writes them, or have a tensor each (docs/format.md): then each may have its own type.
#pragma once

#include "pipeline/layout.h"

#include <ggml.h>
#include <gguf.h>

#include <memory>
#include <string>
#include <vector>

namespace emoe {

struct TensorInfo {
    std::string name;
    ggml_type type;
    int64_t ne[GGML_MAX_DIMS];
    uint16_t file;
    uint64_t offset; // in the file
    uint64_t bytes;
    bool is_table = false; // only looked up by row
};

struct GgufFree {
    void operator()(gguf_context *g) const { gguf_free(g); }
};
using GgufPtr = std::unique_ptr<gguf_context, GgufFree>;

struct ModelIndex {
    GgufPtr meta; // of the first file
    std::string architecture;
    std::string name;
    Layout layout; // experts placed for the files' alignment
    std::vector<TensorInfo> dense;
    std::vector<TensorInfo> experts; // as llama.cpp knows them: one tensor of all experts of a matrix
    // Of blocks that no graph computes (NextN, MTP: they guess tokens ahead): declared, and else as if not there.
    std::vector<TensorInfo> unused;
    uint32_t n_block = 0; // computed
    uint64_t file_bytes = 0;
    uint64_t dense_bytes = 0;
    uint64_t table_bytes = 0; // of dense_bytes
    uint64_t dense_token_bytes = 0;
    uint64_t expert_bytes = 0;
    uint64_t token_bytes = 0;
    uint32_t n_router_input = 0; // length of a router's input, 0 when the layers differ or have none by the usual name
    uint64_t file_identity = 0;
    uint64_t identity = 0; // of the files, and of the metadata that was overridden
    uint32_t alignment = 4096;
    bool direct_io = false;

    // Integer metadata "<architecture>.<key>", a scalar or the largest of an array; otherwise when absent.
    uint64_t number(const char *key, uint64_t otherwise) const;
    uint64_t n_vocab() const; // tokens, as the tokenizer or the metadata say
};

// overrides: see overrides.h. Throws what these do, EMOE_ERR_IO, EMOE_ERR_FORMAT, or EMOE_ERR_UNSUPPORTED when there is no
// expert to stream.
std::unique_ptr<ModelIndex> index_model(const std::string &path, const std::vector<std::string> &overrides);

// Throws EMOE_ERR_IO when a file is no longer the one that was indexed (replaced, edited).
void check_unchanged(const ModelIndex &index);

// "blk.3.ffn_gate_inp.weight": the router of block 3.
bool parse_router_name(const std::string &name, uint32_t *block);

// Scalar metadata as text; false when absent or an array.
bool meta_text(const gguf_context *meta, const char *key, std::string *text);

} // namespace emoe
