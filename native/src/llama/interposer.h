// The seam: sees every node of llama.cpp's graph before it is computed, and makes the expert products ours.
//
// A MUL_MAT_ID node whose weights are a streamed tensor becomes a CUSTOM node by two public fields, op and op_params;
// its shape, sources and destination stay, and so does everything around it (activation functions, biases, weights
// and sums). docs/seam.md lists what this relies on.
#pragma once

#include "base/error.h"
#include "llama/collect.h"
#include "llama/columns.h"
#include "llama/dense.h"
#include "llama/gpu.h"
#include "llama/kernels.h"
#include "llama/tables.h"
#include "llama/tier.h"
#include "pipeline/product.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <llama.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emoe {

class Interposer {
public:
    // gpu: experts that are none of the streamer's; may be null.
    Interposer(Streamer &streamer, DenseWeights &dense, TableNodes &tables, GpuExperts *gpu);

    // llama_context_params.cb_eval, with the Interposer as user data. Always asks for nothing (returns false).
    static bool on_node(ggml_tensor *node, bool ask, void *self);

    void begin_graph(); // before each llama_decode, which computes one: tokens of one sequence, no more than a ubatch
    // Which counts the graphs that it used again: of those only the products are looked at. For a context whose graphs
    // are shown whole before they are computed, on the CPU.
    void set_context(const llama_context *ctx) { ctx_ = ctx; }
    // After a large batch, before the next llama_decode: gives back the pages of llama.cpp's compute buffers and ours.
    // What is in them is dead by then, since every graph shares them.
    void release_work();
    // A look at a model before its first answer: whether the CPU has a kernel for every node that is shown...
    void set_checking(bool on) { checking_ = on, plain_ = false; }
    // ...and a graph whose products by experts are not computed: they give zeros.
    void set_probing(bool on) {
        probing_ = on, plain_ = false;
        tables_.set_probing(on);
    }
    // Whether the graphs so far show what the router gives the experts of every layer.
    bool shows_router_weights() const;
    uint32_t n_rewritten() const { return n_rewritten_; }
    // Why the model cannot be streamed; none when it can.
    const Failure &failure() const { return failure_ ? failure_ : dense_.failure(); }
    // Why the graph under way cannot be computed column by column.
    const std::string &column_violation() const { return column_violation_; }
    Columns &columns() { return columns_; }
    // From the next graph on; null: none. They live as long as they are set.
    void set_tier(GpuTier *tier) { tier_ = tier, plain_ = false; }
    void set_collector(Collector *collector) { collector_ = collector, plain_ = false; }

private:
    struct Site { // one streamed tensor: its product and the op_params that make a node call it
        Site(Streamer &streamer, KernelScratch &scratch, uint32_t l, uint32_t m)
            : product(streamer), work(streamer, scratch, l, m), layer(l), matrix(m) {}
        uint32_t block = 0;
        const bool *probing = nullptr;
        Product product;
        ExpertProduct work;
        uint32_t layer;
        uint32_t matrix;
        char op_params[GGML_MAX_OP_PARAMS] = {};
        char plain_params[GGML_MAX_OP_PARAMS] = {}; // of llama.cpp's own node
    };
    static void compute(ggml_tensor *dst, int ith, int nth, void *site);
    void begin_nodes();
    void see(ggml_tensor *node);
    void refuse(const std::string &why); // the model; the first reason counts
    bool see_product(ggml_tensor *node);
    void decide(Site &site, ggml_tensor *node); // whether its product is ours or llama.cpp's
    void take_over(Site &site, ggml_tensor *node);
    void leave(const Site &site, ggml_tensor *node, const WholeLayer &whole); // to llama.cpp
    Site *site_of(const ggml_tensor *weights);
    void note_buffer(const ggml_tensor *node);
    void note_router(const ggml_tensor *node);
    void note_use(const ggml_tensor *node);
    void give_router(uint32_t layer, const ggml_tensor *node);
    void see_router(const ggml_tensor *node);
    void see_tier(const Site &site, const ggml_tensor *node);

    DenseWeights &dense_;
    TableNodes &tables_;
    GpuExperts *gpu_;
    GpuTier *tier_ = nullptr;
    Collector *collector_ = nullptr;
    KernelScratch scratch_;
    Columns columns_;
    std::unordered_map<std::string, std::unique_ptr<Site>> sites_; // by tensor name
    std::unordered_map<const ggml_tensor *, Site *> known_;        // nullptr: not streamed
    // By block: what its router multiplies and what it gives the chosen experts, in the graph under way.
    struct Router {
        uint32_t layer; // in the layout
        const ggml_tensor *input;
        const ggml_tensor *weights;
    };
    std::unordered_map<uint32_t, Router> routers_;
    // The last layer's products, where experts are given something else than their router, and what that was given: dead by
    // then, unless a node that has not come yet reads it too.
    std::vector<ExpertProduct *> unsure_;
    const ggml_tensor *unsure_input_ = nullptr;
    Streamer &streamer_;
    const llama_context *ctx_ = nullptr; // null: every node of every graph is looked at
    int32_t n_reused_ = 0;               // graphs, when the last one began
    bool begins_ = true;                 // no node of the graph has been seen
    bool again_ = false;                 // the graph under way is the one before
    bool plain_ = false;                 // nothing but the products asked for a look at the graph before
    std::vector<std::pair<Site *, ggml_tensor *>> products_; // of the graph
    std::vector<ggml_backend_buffer_t> compute_buffers_;     // of the graph under way: valid until the next
    const ggml_tensor *outputs_ =
        nullptr; // for a collector: the last layer's expert outputs, as far as the graph has come
    uint32_t outputs_layer_ = 0;
    uint32_t n_rewritten_ = 0;
    bool checking_ = false;
    bool probing_ = false;
    Failure failure_;
    std::string column_violation_;
};

} // namespace emoe
