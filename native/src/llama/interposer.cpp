#include "llama/interposer.h"

#include "llama/index.h"
#include "llama/refusals.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

namespace emoe {

namespace {

bool on_host(const ggml_tensor *t) {
    ggml_backend_buffer_t const buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && (!buffer || ggml_backend_buffer_is_host(buffer));
}

const ggml_tensor *base_of(const ggml_tensor *t) { return t->view_src ? t->view_src : t; }

} // namespace

Interposer::Interposer(Streamer &streamer, DenseWeights &dense, TableNodes &tables, GpuExperts *gpu)
    : dense_(dense), tables_(tables), gpu_(gpu), streamer_(streamer) {
    // ggml_custom_4d packs function, threads and user data into op_params in a layout of its own: a node made by it
    // serves as the template.
    ggml_init_params params = {};
    params.mem_size = 4 * ggml_tensor_overhead();
    params.no_alloc = true;
    ggml_context *ctx = ggml_init(params);
    Layout const &layout = streamer.layout();
    for (uint32_t l = 0; l < layout.layers.size(); l++) {
        routers_.emplace(layout.layers[l].layer, Router{l, nullptr, nullptr});
        for (uint32_t m = 0; m < layout.layers[l].matrices.size(); m++) {
            auto site = std::make_unique<Site>(streamer, scratch_, l, m);
            site->block = layout.layers[l].layer;
            site->probing = &probing_;
            ggml_tensor *source = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
            ggml_tensor *node =
                ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, &source, 1, compute, GGML_N_TASKS_MAX, site.get());
            memcpy(site->op_params, node->op_params, sizeof site->op_params);
            sites_.emplace(layout.layers[l].matrices[m].name, std::move(site));
            ggml_reset(ctx);
        }
    }
    ggml_free(ctx);
}

void Interposer::compute(ggml_tensor *dst, int ith, int nth, void *user) {
    auto *site = static_cast<Site *>(user);
    if (*site->probing) {
        if (ith == 0) memset(dst->data, 0, ggml_nbytes(dst));
        return;
    }
    site->product.run(static_cast<uint32_t>(ith), static_cast<uint32_t>(nth), site->work);
}

void Interposer::note_buffer(const ggml_tensor *node) {
    ggml_backend_buffer_t const b = node->buffer;
    if (!b || node->view_src || (!compute_buffers_.empty() && compute_buffers_.back() == b)) return;
    if (ggml_backend_buffer_get_usage(b) != GGML_BACKEND_BUFFER_USAGE_COMPUTE || !ggml_backend_buffer_is_host(b))
        return;
    if (ggml_backend_buffer_get_type(b) != ggml_backend_cpu_buffer_type()) return; // a driver's pinned memory
    if (std::find(compute_buffers_.begin(), compute_buffers_.end(), b) == compute_buffers_.end())
        compute_buffers_.push_back(b);
}

void Interposer::release_work() {
    if (begins_) { // a graph that never came may have taken other buffers, and freed those of the one before
        compute_buffers_.clear();
        plain_ = false;
    }
    for (ggml_backend_buffer_t const b : compute_buffers_)
        discard_pages(ggml_backend_buffer_get_base(b), ggml_backend_buffer_get_size(b));
    scratch_.release();
}

void Interposer::begin_graph() {
    begins_ = true;
    outputs_ = nullptr;
    column_violation_.clear();
    for (auto const &site : sites_) site.second->product.disarm();
}

// Before the first node. A graph that is used again has the nodes of the one before, as that left them.
void Interposer::begin_nodes() {
    begins_ = false;
    int32_t const n_reused = ctx_ ? llama_perf_context(ctx_).n_reused : n_reused_;
    again_ = n_reused != n_reused_ && plain_ && !columns_.on();
    n_reused_ = n_reused;
    plain_ = !checking_ && !probing_ && !collector_ && !columns_.on();
    if (again_) {
        for (auto const &[site, node] : products_) decide(*site, node);
        return;
    }
    products_.clear();
    compute_buffers_.clear();
    unsure_.clear();
    for (auto &router : routers_) router.second.input = router.second.weights = nullptr;
}

bool Interposer::on_node(ggml_tensor *node, bool ask, void *self) {
    if (!ask) return true;
    static_cast<Interposer *>(self)->see(node);
    return false;
}

Interposer::Site *Interposer::site_of(const ggml_tensor *weights) {
    auto const known = known_.find(weights);
    if (known != known_.end()) return known->second;
    auto const found = sites_.find(ggml_get_name(weights));
    Site *site = found == sites_.end() ? nullptr : found->second.get();
    known_.emplace(weights, site);
    return site;
}

// From the experts' outputs on: a bias an expert (ADD_ID), a scale an expert, and last the router's weights, a value an
// output. The last such factor is the router's.
void Interposer::see_router(const ggml_tensor *node) {
    if (node->op != GGML_OP_ADD_ID && node->op != GGML_OP_MUL) return;
    ggml_tensor const *factor = node->src[1];
    if (node->op == GGML_OP_MUL && factor->type == GGML_TYPE_F32 && factor->ne[0] == 1 &&
        factor->ne[1] == node->ne[1] && factor->ne[2] == node->ne[2])
        collector_->set_router(outputs_layer_, factor);
    outputs_ = node;
}

void Interposer::refuse(const std::string &why) {
    if (!failure_) failure_ = {EMOE_ERR_UNSUPPORTED, "this model cannot be streamed: " + why};
}

void Interposer::see(ggml_tensor *node) {
    if (begins_) begin_nodes();
    if (again_) return;
    note_buffer(node);
    if (outputs_ && node->src[0] == outputs_) see_router(node);
    if (node->view_src) dense_.visit_view(node);
    if (!unsure_.empty()) note_use(node);
    if (see_product(node) || tables_.see(node)) return;
    if (checking_ && node->src[0] && on_host(node->src[0])) {
        std::string const why = cannot_compute(node);
        if (!why.empty() && !failure_) failure_ = {EMOE_ERR_UNSUPPORTED, why};
    }
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        ggml_tensor *source = node->src[i];
        if (!source || !source->data) continue;
        if (dense_.is_hole(source))
            refuse(std::string("`") + ggml_get_name(base_of(source)) + "` is used by " + ggml_op_desc(node) +
                   ", not by the common mixture block");
        if (!source->view_src) dense_.visit(source);
    }
    note_router(node);
    columns_.see(node, &column_violation_);
}

// True for a product by experts: ours, the GPU's, or one that cannot be computed.
bool Interposer::see_product(ggml_tensor *node) {
    // A reused graph brings the same nodes again, already CUSTOM: they are recognised by their weights.
    if ((node->op != GGML_OP_MUL_MAT_ID && node->op != GGML_OP_CUSTOM) || !node->src[0] || !node->src[1]) return false;
    try {
        if (gpu_ && gpu_->visit(node->src[0])) return true;
    } catch (...) { // llama.cpp is between us and who asked
        Failure const failure = caught();
        if (failure.status == EMOE_ERR_UNSUPPORTED)
            refuse(failure.message);
        else if (!failure_)
            failure_ = failure;
        return true;
    }
    Site *site = site_of(node->src[0]);
    if (!site) return false;
    for (int i = 1; i < GGML_MAX_SRC && node->src[i]; i++) dense_.visit(node->src[i]);
    bool const fits = node->type == GGML_TYPE_F32 && node->src[1]->type == GGML_TYPE_F32 && node->src[2] &&
                      node->src[2]->type == GGML_TYPE_I32 && node->src[1]->nb[0] == sizeof(float) &&
                      node->src[1]->ne[3] == 1;
    if (fits) {
        products_.emplace_back(site, node);
        decide(*site, node);
    } else { // the abort callback ends the computation before it comes to this node
        refuse(std::string("the product by `") + ggml_get_name(node->src[0]) + "` has an unknown form");
    }
    return true;
}

// Batches are ours also where a layer is whole: our threads share all experts' rows, ggml's go expert by expert.
void Interposer::decide(Site &site, ggml_tensor *node) {
    bool const few = node->src[2]->ne[1] <= k_max_columns;
    if (WholeLayer const *whole = few && !collector_ ? streamer_.whole(site.layer) : nullptr)
        leave(site, node, *whole);
    else
        take_over(site, node);
}

void Interposer::take_over(Site &site, ggml_tensor *node) {
    if (!site.product.arm()) refuse(std::string("`") + ggml_get_name(node->src[0]) + "` is used twice in one graph");
    Router const &router = routers_.at(site.block);
    site.work.dst = node;
    // A router on a GPU has its input there: the copy that our product gets is the same in the common block.
    site.work.router_input = router.input && !on_host(router.input) ? node->src[1] : router.input;
    if (!again_) site.work.router_input_lives = false; // as it was found out then
    if (!again_ && router.input && on_host(router.input) && router.input->type == GGML_TYPE_F32 &&
        router.input->data != node->src[1]->data) {
        if (unsure_input_ != base_of(router.input)) unsure_.clear();
        unsure_input_ = base_of(router.input);
        unsure_.push_back(&site.work);
    }
    site.work.router_weights = router.weights && on_host(router.weights) ? router.weights : nullptr;
    site.work.tier = tier_ && tier_->has(site.layer) ? tier_ : nullptr;
    site.work.collector = collector_;
    if (node->op == GGML_OP_MUL_MAT_ID) memcpy(site.plain_params, node->op_params, sizeof site.plain_params);
    node->op = GGML_OP_CUSTOM;
    memcpy(node->op_params, site.op_params, sizeof site.op_params);
    n_rewritten_++;
    if (collector_ && collector_->is_down(site.layer, site.matrix)) {
        outputs_ = node;
        outputs_layer_ = site.layer;
        collector_->set_router(site.layer, nullptr);
    }
    if (site.work.tier) see_tier(site, node);
}

void Interposer::leave(const Site &site, ggml_tensor *node, const WholeLayer &whole) {
    ggml_tensor *weights = node->src[0];
    weights->data = const_cast<uint8_t *>(whole.at[site.matrix]);
    weights->nb[2] = whole.stride;
    weights->nb[3] = whole.stride * static_cast<size_t>(weights->ne[2]);
    if (node->op == GGML_OP_CUSTOM) {
        node->op = GGML_OP_MUL_MAT_ID;
        memcpy(node->op_params, site.plain_params, sizeof site.plain_params);
    }
    if (site.matrix == 0) streamer_.count_whole(site.layer, static_cast<uint64_t>(ggml_nelements(node->src[2])));
}

bool Interposer::shows_router_weights() const {
    return std::all_of(sites_.begin(), sites_.end(), [](auto const &s) { return s.second->work.router_weights; });
}

// The GPU's experts are computed by a graph of our own, which must say what llama.cpp's says.
void Interposer::see_tier(const Site &site, const ggml_tensor *node) {
    ExpertLayer const &layer = streamer_.layout().layers[site.layer];
    auto const refuse_layer = [&](const char *why) {
        refuse("experts of layer " + std::to_string(layer.layer) + " cannot be on a GPU one by one: " + why);
    };
    if (layer.matrices[site.matrix].role != "down") {
        if (node->src[1]->ne[1] != 1) refuse_layer("they multiply other rows than their router does");
        return;
    }
    ggml_tensor const *glu = node->src[1];
    if (glu->op != GGML_OP_GLU || !glu->src[0] || !glu->src[1])
        return refuse_layer("what is between their products is unknown");
    auto const role = [&](const ggml_tensor *t) -> std::string {
        Site const *from = t->src[0] ? site_of(t->src[0]) : nullptr;
        return from && from->layer == site.layer ? layer.matrices[from->matrix].role : "";
    };
    std::string const a = role(glu->src[0]), b = role(glu->src[1]);
    if (!(a == "gate" && b == "up") && !(a == "up" && b == "gate"))
        return refuse_layer("what is between their products is unknown");
    tier_->set_activation(site.layer, glu, a == "gate");
}

// Prediction and traces want the router's input and its weights for the chosen experts. Where a graph names them
// otherwise, nothing is predicted or traced of them; the output does not depend on it.
void Interposer::note_router(const ggml_tensor *node) {
    uint32_t block = 0;
    int end = 0;
    const char *name = ggml_get_name(node);
    if (node->op == GGML_OP_MUL_MAT) {
        const char *weights = ggml_get_name(node->src[0]);
        // Every node comes this way before each token: sscanf only where it may find something.
        if (!strstr(weights, ".ffn_gate_inp.") || !parse_router_name(weights, &block)) return;
        auto const known = routers_.find(block);
        if (known == routers_.end()) return;
        known->second.input = node->src[1];
        if (streamer_.wants_router(known->second.layer)) give_router(known->second.layer, node);
    } else if (strncmp(name, "ffn_moe_weights", strlen("ffn_moe_weights")) == 0 &&
               (sscanf(name, "ffn_moe_weights%*[a-z_]-%u%n", &block, &end) == 1 ||
                sscanf(name, "ffn_moe_weights-%u%n", &block, &end) == 1)) {
        auto const known = routers_.find(block);
        if (known == routers_.end() || end == 0 || name[end] != 0) return;
        // The last of them that is no sum is what multiplies the experts' results.
        if (!strstr(name, "_sum") && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node))
            known->second.weights = node;
    }
}

void Interposer::note_use(const ggml_tensor *node) {
    for (int i = 0; i < GGML_MAX_SRC && node->src[i]; i++) {
        if (base_of(node->src[i]) != unsure_input_) continue;
        for (ExpertProduct *product : unsure_) product->router_input_lives = true;
        unsure_.clear();
    }
}

void Interposer::give_router(uint32_t layer, const ggml_tensor *node) {
    ggml_tensor const *weights = node->src[0];
    ggml_to_float_t const to_float = ggml_get_type_traits(weights->type)->to_float;
    if (!weights->data || (weights->type != GGML_TYPE_F32 && !to_float)) return;
    if (weights->ne[1] != streamer_.layout().layers[layer].n_expert) return;
    auto const n = static_cast<size_t>(weights->ne[0]);
    std::vector<float> rows(n * static_cast<size_t>(weights->ne[1]));
    std::vector<char> copy;
    auto const *data = static_cast<const char *>(weights->data);
    if (!on_host(weights)) {
        copy.resize(ggml_nbytes(weights));
        ggml_backend_tensor_get(weights, copy.data(), 0, copy.size());
        data = copy.data();
    }
    for (int64_t e = 0; e < weights->ne[1]; e++) {
        auto const *row = data + static_cast<size_t>(e) * weights->nb[1];
        if (weights->type == GGML_TYPE_F32)
            memcpy(rows.data() + static_cast<size_t>(e) * n, row, n * sizeof(float));
        else
            to_float(row, rows.data() + static_cast<size_t>(e) * n, weights->ne[0]);
    }
    // The weight of the norm before it, when the graph shows one.
    ggml_tensor const *input = node->src[1];
    while (input && (input->op == GGML_OP_RESHAPE || input->op == GGML_OP_VIEW || input->op == GGML_OP_CONT))
        input = input->src[0];
    const float *norm = nullptr;
    std::vector<float> norm_copy;
    if (input && input->op == GGML_OP_MUL && input->src[1]->type == GGML_TYPE_F32 &&
        input->src[1]->op == GGML_OP_NONE && ggml_nelements(input->src[1]) == weights->ne[0] && input->src[1]->data) {
        norm = static_cast<const float *>(input->src[1]->data);
        if (!on_host(input->src[1])) {
            norm_copy.resize(n);
            ggml_backend_tensor_get(input->src[1], norm_copy.data(), 0, n * sizeof(float));
            norm = norm_copy.data();
        }
    }
    streamer_.set_router(layer, rows.data(), norm);
}

} // namespace emoe
