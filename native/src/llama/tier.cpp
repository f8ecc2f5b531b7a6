#include "llama/tier.h"

#include "base/clock.h"
#include "base/error.h"
#include "llama/gpu.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace emoe {

namespace {

// Work space of a piece of a batch, at most: enough rows for the batched kernels of any GPU.
constexpr uint64_t k_piece_bytes = uint64_t{64} << 20;
constexpr uint32_t k_piece_rows = 1024;
// Tensors of a chain: inputs, ids, gathered rows and two views of them, up, gate, activation, down.
constexpr size_t k_chain_tensors = 16;
constexpr size_t k_align = 256; // no backend asks for more

struct Shape { // of the largest layer
    uint64_t n_col = 0, n_ff = 0, n_row = 0;
    uint32_t n_rank = 0;

    // Work space that a row takes, and rows at once.
    uint64_t row_bytes() const { return (n_col + 3 * n_ff + n_row) * sizeof(float) + 2 * sizeof(int32_t); }
    uint32_t n_piece() const {
        auto const most = static_cast<uint32_t>(std::max<uint64_t>(n_rank, k_piece_bytes / row_bytes()));
        return std::min(std::max(n_rank, k_piece_rows), most);
    }
    uint64_t work_bytes(uint32_t n_ubatch) const {
        return n_piece() * row_bytes() + n_ubatch * n_col * sizeof(float) + k_chain_tensors * k_align;
    }
    uint64_t staging_bytes(uint32_t n_ubatch) const {
        return n_ubatch * n_col * sizeof(float) + n_piece() * (n_row * sizeof(float) + 2 * sizeof(int32_t)) +
               4 * k_align;
    }
};

Shape shape_of(const Layout &layout, const std::vector<uint32_t> &experts) {
    Shape s;
    s.n_rank = layout.n_expert_used;
    for (ExpertLayer const &layer : layout.layers) {
        auto const first = std::lower_bound(experts.begin(), experts.end(), layer.first);
        if (first == experts.end() || *first >= layer.first + layer.n_expert) continue;
        for (Matrix const &m : layer.matrices) {
            if (m.role == "down") {
                s.n_ff = std::max<uint64_t>(s.n_ff, m.n_col);
                s.n_row = std::max<uint64_t>(s.n_row, m.n_row);
            } else {
                s.n_col = std::max<uint64_t>(s.n_col, m.n_col);
            }
        }
    }
    return s;
}

uint64_t aligned(uint64_t bytes) { return (bytes + k_align - 1) / k_align * k_align; }

uint32_t matrix_of(const ExpertLayer &layer, const char *role) {
    for (uint32_t m = 0; m < layer.matrices.size(); m++)
        if (layer.matrices[m].role == role) return m;
    return UINT32_MAX;
}

} // namespace

struct GpuTier::Chain {
    ggml_context *ctx = nullptr;
    ggml_cgraph *graph = nullptr;
    ggml_tensor *input = nullptr; // [n_col, 1, 1] or [n_col, n_token]
    ggml_tensor *ids = nullptr;   // places in the stacks
    ggml_tensor *from = nullptr;  // of a batch: token of each row
    ggml_tensor *output = nullptr;
    ~Chain() { ggml_free(ctx); }
};

namespace {

// Why this layer's experts cannot be on a GPU one by one, empty when they can as far as the file tells.
std::string refusal(const ModelIndex &index, const ExpertLayer &l) {
    if (l.matrices.size() != 3 || matrix_of(l, "up") == UINT32_MAX || matrix_of(l, "gate") == UINT32_MAX ||
        matrix_of(l, "down") == UINT32_MAX)
        return "its experts are not three matrices up, gate and down";
    std::string const biases = "blk." + std::to_string(l.layer) + ".ffn_";
    for (TensorInfo const &t : index.dense)
        if (t.name.rfind(biases, 0) == 0 && t.name.find("exps.bias") != std::string::npos)
            return "its experts have biases";
    return has_one_type(l) ? "" : "its experts are of several types";
}

void require(const ModelIndex &index, const ExpertLayer &layer) {
    std::string const why = refusal(index, layer);
    if (!why.empty())
        fail(EMOE_ERR_UNSUPPORTED, "experts of layer %u cannot be on a GPU one by one: %s", layer.layer, why.c_str());
}

} // namespace

TierBytes GpuTier::bytes(const ModelIndex &index, const std::vector<uint32_t> &experts, uint32_t n_ubatch) {
    TierBytes b;
    if (experts.empty()) return b;
    for (ExpertLayer const &layer : index.layout.layers)
        for (uint32_t m = 0; m < layer.matrices.size(); m++) {
            uint64_t sum = 0;
            for (auto e = std::lower_bound(experts.begin(), experts.end(), layer.first);
                 e != experts.end() && *e < layer.first + layer.n_expert; ++e)
                sum += layer.slice(*e - layer.first, m).bytes;
            if (sum == 0) continue;
            if (m == 0) require(index, layer);
            // CUDA rounds the rows of the last expert up to 512 weights.
            b.gpu += aligned(sum) + 4096;
        }
    Shape const shape = shape_of(index.layout, experts);
    b.gpu += shape.work_bytes(n_ubatch);
    b.host = shape.staging_bytes(n_ubatch);
    return b;
}

GpuTier::GpuTier(const ModelIndex &index, ggml_backend_dev_t device, const std::vector<uint32_t> &experts,
                 uint32_t n_ubatch)
    : layers_(index.layout.layers.size()), n_ubatch_(n_ubatch) {
    try {
        build(index, device, experts);
    } catch (...) {
        release();
        throw;
    }
}

GpuTier::~GpuTier() {
    if (backend_) ggml_backend_synchronize(backend_);
    release();
}

uint64_t GpuTier::gpu_bytes() const {
    return ggml_backend_buffer_get_size(weights_) + ggml_backend_buffer_get_size(work_);
}

void GpuTier::release() {
    batch_.reset();
    layers_.clear();
    for (ggml_backend_buffer_t b : {staging_, work_, weights_})
        if (b) ggml_backend_buffer_free(b);
    if (ctx_) ggml_free(ctx_);
    if (backend_) ggml_backend_free(backend_);
}

void GpuTier::build(const ModelIndex &index, ggml_backend_dev_t device, const std::vector<uint32_t> &experts) {
    Layout const &layout = index.layout;
    Shape const shape = shape_of(layout, experts);
    n_piece_ = shape.n_piece();
    ggml_init_params params = {};
    params.mem_size = (3 * layers_.size() + 1) * ggml_tensor_overhead();
    params.no_alloc = true;
    ctx_ = ggml_init(params);
    for (uint32_t l = 0; l < layers_.size(); l++) {
        ExpertLayer const &spec = layout.layers[l];
        Layer &layer = layers_[l];
        layer.place.assign(spec.n_expert, -1);
        for (auto e = std::lower_bound(experts.begin(), experts.end(), spec.first);
             e != experts.end() && *e < spec.first + spec.n_expert; ++e) {
            layer.place[*e - spec.first] = static_cast<int32_t>(layer.experts.size());
            layer.experts.push_back(*e - spec.first);
        }
        if (layer.experts.empty()) continue;
        require(index, spec);
        for (uint32_t m = 0; m < spec.matrices.size(); m++) {
            Matrix const &matrix = spec.matrices[m];
            ggml_tensor *stack = ggml_new_tensor_3d(ctx_, static_cast<ggml_type>(spec.slice(0, m).type), matrix.n_col,
                                                    matrix.n_row, static_cast<int64_t>(layer.experts.size()));
            ggml_set_name(stack, matrix.name.c_str());
            layer.stacks.push_back(stack);
        }
        layer.up = matrix_of(spec, "up");
        layer.gate = matrix_of(spec, "gate");
        layer.down = matrix_of(spec, "down");
    }
    ggml_backend_buffer_type_t const type = ggml_backend_dev_buffer_type(device);
    ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(device);
    if (!host) host = ggml_backend_cpu_buffer_type();
    backend_ = ggml_backend_dev_init(device, nullptr);
    if (backend_) weights_ = ggml_backend_alloc_ctx_tensors_from_buft(ctx_, type);
    if (weights_) work_ = ggml_backend_buft_alloc_buffer(type, shape.work_bytes(n_ubatch_));
    if (work_) staging_ = ggml_backend_buft_alloc_buffer(host, shape.staging_bytes(n_ubatch_));
    if (!staging_)
        fail(EMOE_ERR_MEMORY, "%s cannot hold %zu experts: give it less with --gpu-memory",
             ggml_backend_dev_name(device), experts.size());
    ggml_backend_buffer_set_usage(weights_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    auto *at = static_cast<uint8_t *>(ggml_backend_buffer_get_base(staging_));
    inputs_ = at;
    outputs_ = at + aligned(n_ubatch_ * shape.n_col * sizeof(float));
    ids_ = reinterpret_cast<int32_t *>(outputs_ + aligned(n_piece_ * shape.n_row * sizeof(float)));
    fill(index);
}

uint64_t GpuTier::measure_ns(const ModelIndex &index, ggml_backend_dev_t device, uint32_t layer, uint32_t n) {
    constexpr int k_runs = 25, k_warm = 5;
    ExpertLayer const &spec = index.layout.layers[layer];
    std::vector<uint32_t> experts(std::min(n, spec.n_expert));
    std::iota(experts.begin(), experts.end(), spec.first);
    GpuTier tier(index, device, experts, 1);
    std::vector<GpuRow> rows;
    for (uint32_t i = 0; i < experts.size(); i++) rows.push_back(GpuRow{0, i, i});
    Layer const &l = tier.layers_[layer];
    ggml_tensor from = *l.stacks[l.up], to = *l.stacks[l.down]; // of which only shapes and data are looked at
    std::vector<float> x(static_cast<size_t>(from.ne[0]), 0.01f), y(static_cast<size_t>(to.ne[1]) * experts.size());
    from.ne[1] = from.ne[2] = 1;
    from.nb[1] = from.nb[2] = x.size() * sizeof(float);
    from.data = x.data();
    to.ne[0] = to.ne[1];
    to.ne[1] = static_cast<int64_t>(experts.size());
    to.nb[1] = static_cast<size_t>(to.ne[0]) * sizeof(float);
    to.nb[2] = y.size() * sizeof(float);
    to.data = y.data();
    std::vector<uint64_t> took;
    for (int i = 0; i < k_runs; i++) {
        uint64_t const t0 = now_ns();
        tier.begin(layer, &from, rows);
        tier.finish(&to);
        if (i >= k_warm) took.push_back(now_ns() - t0);
    }
    std::nth_element(took.begin(), took.begin() + static_cast<ptrdiff_t>(took.size() / 2), took.end());
    return took[took.size() / 2];
}

void GpuTier::fill(const ModelIndex &index) {
    SliceReader reader(index.layout);
    for (uint32_t l = 0; l < layers_.size(); l++)
        for (size_t i = 0; i < layers_[l].experts.size(); i++)
            for (uint32_t m = 0; m < layers_[l].stacks.size(); m++) {
                ggml_tensor *weights = layers_[l].stacks[m];
                Slice const &s = index.layout.layers[l].slice(layers_[l].experts[i], m);
                if (s.bytes != weights->nb[2])
                    fail(EMOE_ERR_UNSUPPORTED, "`%s` has another form on the GPU", ggml_get_name(weights));
                ggml_backend_tensor_set(weights, reader.read(s), i * weights->nb[2], s.bytes);
            }
}

void GpuTier::set_activation(uint32_t layer, const ggml_tensor *glu, bool gate_first) {
    Layer &l = layers_[layer];
    if (l.known) return;
    memcpy(l.glu_params, glu->op_params, sizeof l.glu_params);
    l.gate_first = gate_first;
    l.known = true;
}

// Gives a tensor its place in the work space. Chains share it: they are computed one after the other.
ggml_tensor *GpuTier::place(ggml_tensor *t, size_t *offset) const {
    auto *base = static_cast<uint8_t *>(ggml_backend_buffer_get_base(work_));
    if (t->view_src)
        ggml_backend_view_init(t);
    else
        ggml_backend_tensor_alloc(work_, t, base + *offset);
    if (!t->view_src) *offset += aligned(ggml_nbytes(t));
    return t;
}

std::unique_ptr<GpuTier::Chain> GpuTier::chain(Layer &layer, uint32_t n_row, bool single) {
    auto c = std::make_unique<Chain>();
    ggml_init_params params = {};
    params.mem_size = k_chain_tensors * ggml_tensor_overhead() + ggml_graph_overhead_custom(k_chain_tensors, false);
    params.no_alloc = true;
    c->ctx = ggml_init(params);
    ggml_tensor *up = layer.stacks[layer.up], *gate = layer.stacks[layer.gate], *down = layer.stacks[layer.down];
    size_t offset = 0;
    ggml_tensor *x = nullptr;
    if (single) { // one token, n_row of its experts
        c->input = x = place(ggml_new_tensor_3d(c->ctx, GGML_TYPE_F32, up->ne[0], 1, 1), &offset);
        c->ids = place(ggml_new_tensor_2d(c->ctx, GGML_TYPE_I32, n_row, 1), &offset);
    } else { // n_row pairs, each as a token of its own
        c->input = place(ggml_new_tensor_2d(c->ctx, GGML_TYPE_F32, up->ne[0], n_ubatch_), &offset);
        c->ids = place(ggml_new_tensor_2d(c->ctx, GGML_TYPE_I32, 1, n_row), &offset);
        c->from = place(ggml_new_tensor_1d(c->ctx, GGML_TYPE_I32, n_row), &offset);
        ggml_tensor *gathered = place(ggml_get_rows(c->ctx, c->input, c->from), &offset);
        x = place(ggml_reshape_3d(c->ctx, gathered, up->ne[0], 1, n_row), &offset);
    }
    ggml_tensor *u = place(ggml_mul_mat_id(c->ctx, up, x, c->ids), &offset);
    ggml_tensor *g = place(ggml_mul_mat_id(c->ctx, gate, x, c->ids), &offset);
    ggml_tensor *a = layer.gate_first ? ggml_glu_split(c->ctx, g, u, GGML_GLU_OP_SWIGLU)
                                      : ggml_glu_split(c->ctx, u, g, GGML_GLU_OP_SWIGLU);
    if (layer.known) memcpy(a->op_params, layer.glu_params, sizeof layer.glu_params);
    place(a, &offset);
    c->output = place(ggml_mul_mat_id(c->ctx, down, a, c->ids), &offset);
    c->graph = ggml_new_graph_custom(c->ctx, k_chain_tensors, false);
    ggml_build_forward_expand(c->graph, c->output);
    for (int i = 0; i < ggml_graph_n_nodes(c->graph); i++)
        if (!ggml_backend_supports_op(backend_, ggml_graph_node(c->graph, i)))
            fail(EMOE_ERR_UNSUPPORTED, "the GPU cannot compute %s of `%s`", ggml_op_desc(ggml_graph_node(c->graph, i)),
                 ggml_get_name(up));
    return c;
}

void GpuTier::launch(const GpuRow *rows, uint32_t n) {
    Layer &layer = layers_[layer_];
    bool const single = n_token_ == 1;
    Chain *c = nullptr;
    if (single) {
        if (layer.chains.size() <= n) layer.chains.resize(n + 1);
        if (!layer.chains[n]) layer.chains[n] = chain(layer, n, true);
        c = layer.chains[n].get();
    } else {
        batch_ = chain(layer, n, false);
        c = batch_.get();
    }
    for (uint32_t i = 0; i < n; i++) {
        ids_[i] = layer.place[rows[i].expert];
        ids_[n_piece_ + i] = static_cast<int32_t>(rows[i].token);
    }
    if (n_fetched_ == 0) // the first piece brings the activations of all
        ggml_backend_tensor_set_async(backend_, c->input, inputs_, 0,
                                      static_cast<size_t>(c->input->ne[0]) * n_token_ * sizeof(float));
    ggml_backend_tensor_set_async(backend_, c->ids, ids_, 0, n * sizeof(int32_t));
    if (c->from) ggml_backend_tensor_set_async(backend_, c->from, ids_ + n_piece_, 0, n * sizeof(int32_t));
    if (ggml_backend_graph_compute_async(backend_, c->graph) != GGML_STATUS_SUCCESS)
        fail(EMOE_ERR_INTERNAL, "the GPU could not compute its experts");
    ggml_backend_tensor_get_async(backend_, c->output, outputs_, 0, ggml_nbytes(c->output));
    n_launched_ = n;
}

void GpuTier::begin(uint32_t layer, const ggml_tensor *activations, const std::vector<GpuRow> &rows) {
    if (n_launched_ != 0) ggml_backend_synchronize(backend_); // of a visit that was given up
    n_launched_ = n_fetched_ = 0;
    layer_ = layer;
    n_token_ = static_cast<uint32_t>(activations->ne[2]);
    rows_ = rows;
    size_t const bytes = static_cast<size_t>(activations->ne[0]) * sizeof(float);
    for (uint32_t t = 0; t < n_token_; t++)
        memcpy(inputs_ + t * bytes, static_cast<const char *>(activations->data) + t * activations->nb[2], bytes);
    if (!rows_.empty()) launch(rows_.data(), std::min(n_piece_, static_cast<uint32_t>(rows_.size())));
}

void GpuTier::fetch(ggml_tensor *dst, const GpuRow *rows, uint32_t n) {
    ggml_backend_synchronize(backend_);
    size_t const bytes = static_cast<size_t>(dst->ne[0]) * sizeof(float);
    for (uint32_t i = 0; i < n; i++)
        memcpy(static_cast<char *>(dst->data) + rows[i].rank * dst->nb[1] + rows[i].token * dst->nb[2],
               outputs_ + i * bytes, bytes);
    n_launched_ = 0;
}

void GpuTier::finish(ggml_tensor *dst) {
    auto const n = static_cast<uint32_t>(rows_.size());
    while (n_fetched_ < n) {
        uint32_t const done = n_launched_;
        fetch(dst, rows_.data() + n_fetched_, done);
        n_fetched_ += done;
        if (n_fetched_ < n) launch(rows_.data() + n_fetched_, std::min(n_piece_, n - n_fetched_));
    }
}

} // namespace emoe
