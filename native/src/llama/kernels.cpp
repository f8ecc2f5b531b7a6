#include "llama/kernels.h"

#include "base/error.h"
#include "llama/collect.h"
#include "llama/cpu.h"
#include "llama/residual.h"
#include "llama/tier.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

namespace emoe {

namespace {

// ggml takes its batched kernels from this many rows an expert on; below it computes row by row.
constexpr uint32_t k_batched_rows = 8;
// ggml's batched kernels work on groups of this many weight rows: chunks are cut at multiples.
constexpr uint32_t k_row_group = 64;
constexpr uint32_t k_few_group = 16; // the same where rows are computed one by one
// Activations that one thread quantizes while it begins a product: a microsecond, less than it takes to share them.
constexpr int64_t k_at_once = 4096;

} // namespace

// A one-node graph  out[n_row, 1, n_col] = weights[k, n_row, 1] x rows[k, 1, n_col]  whose shapes are set anew for
// every product. ids are all zero: the "expert" of the node is the only one there.
struct KernelScratch::Batched {
    ggml_context *ctx = nullptr;
    ggml_cgraph *graph = nullptr;
    ggml_tensor *weights = nullptr;
    ggml_tensor *rows = nullptr;
    ggml_tensor *ids = nullptr;
    ggml_tensor *out = nullptr;
    Buffer gathered;
    Buffer result;
    Buffer zeros; // the ids: a new buffer's pages are zero, and nobody writes to them
    Buffer work;

    Batched() {
        ggml_init_params params = {};
        params.mem_size = 8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false);
        params.no_alloc = true;
        ctx = ggml_init(params);
        weights = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 32, 1, 1);
        rows = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 32, 1, 1);
        ids = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, 1);
        out = ggml_mul_mat_id(ctx, weights, rows, ids);
        graph = ggml_new_graph_custom(ctx, 8, false);
        ggml_build_forward_expand(graph, out);
    }
    ~Batched() { ggml_free(ctx); }
    Batched(const Batched &) = delete;
    Batched &operator=(const Batched &) = delete;

    static void shape(ggml_tensor *t, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, void *data) {
        t->type = type;
        t->ne[0] = ne0;
        t->ne[1] = ne1;
        t->ne[2] = ne2;
        t->ne[3] = 1;
        t->nb[0] = ggml_type_size(type);
        t->nb[1] = ggml_row_size(type, ne0);
        t->nb[2] = t->nb[1] * static_cast<size_t>(ne1);
        t->nb[3] = t->nb[2] * static_cast<size_t>(ne2);
        t->data = data;
    }

    void run(ggml_type type, const uint8_t *w, uint32_t k, uint32_t n_row, ggml_type row_type, uint32_t n_col) {
        shape(weights, type, k, n_row, 1, const_cast<uint8_t *>(w));
        shape(rows, row_type, k, 1, n_col, gathered.data());
        shape(ids, GGML_TYPE_I32, 1, n_col, 1, zeros.reserve(n_col * sizeof(int32_t)));
        shape(out, GGML_TYPE_F32, n_row, 1, n_col, result.reserve(size_t{n_row} * n_col * sizeof(float)));
        ggml_cplan plan = cpu().graph_plan(graph, 1, nullptr);
        plan.work_data = work.reserve(plan.work_size);
        cpu().graph_compute(graph, &plan);
    }
};

KernelScratch::KernelScratch() = default;
KernelScratch::~KernelScratch() = default;

KernelScratch::Batched &KernelScratch::batched(uint32_t thread) { return *batched_[thread]; }

void KernelScratch::reserve_threads(uint32_t n) {
    while (batched_.size() < n) batched_.push_back(std::make_unique<Batched>());
}

void KernelScratch::release() {
    held = Held{};
    for (Buffer const &q : quantized) q.release();
    for (auto const &b : batched_)
        for (Buffer const *part : {&b->gathered, &b->result, &b->work}) part->release();
}

uint64_t scratch_bytes(const Layout &layout, uint32_t n_token, uint32_t n_thread) {
    uint64_t quantized[GGML_TYPE_COUNT] = {}; // by vec_dot type: experts of several types need all of theirs
    uint64_t per_thread = 0;
    for (ExpertLayer const &layer : layout.layers)
        for (uint32_t m = 0; m < layer.matrices.size(); m++) {
            Matrix const &matrix = layer.matrices[m];
            uint64_t const n_row = matrix.role == "down" ? uint64_t{n_token} * layout.n_expert_used : n_token;
            uint64_t row = 0;
            for (uint32_t e = 0; e < layer.n_expert; e++) {
                auto const type = static_cast<ggml_type>(layer.slice(e, m).type);
                ggml_type const dot_type = cpu().type_traits(type)->vec_dot_type;
                uint64_t const bytes = ggml_row_size(dot_type, matrix.n_col);
                row = std::max(row, bytes);
                quantized[dot_type] = std::max(quantized[dot_type], n_row * bytes);
            }
            // Gathered rows, results of a chunk, and ggml's work space (half a MiB a thread for its tiles).
            uint64_t const chunk_rows = (matrix.n_row + n_thread - 1) / n_thread + k_row_group;
            per_thread = std::max(per_thread, n_token * row + n_token * chunk_rows * sizeof(float) +
                                                  (uint64_t{640} << 10) + uint64_t{n_token} * 16);
        }
    return std::accumulate(std::begin(quantized), std::end(quantized), uint64_t{0}) + per_thread * n_thread;
}

bool can_compute(ggml_type type) {
    if (type < 0 || type >= GGML_TYPE_COUNT) return false;
    auto const *traits = cpu().type_traits(type);
    return traits && traits->vec_dot &&
           (traits->vec_dot_type == GGML_TYPE_F32 || cpu().type_traits(traits->vec_dot_type)->from_float);
}

void ExpertProduct::read_routing(bool is_last) {
    ggml_tensor const *activations = dst->src[1];
    ggml_tensor const *ids = dst->src[2];
    Routing &routing = routing_;
    routing = Routing{};
    routing.ids = static_cast<const uint8_t *>(ids->data);
    routing.n_rank = static_cast<uint32_t>(ids->ne[0]);
    routing.n_token = static_cast<uint32_t>(ids->ne[1]);
    routing.rank_stride = ids->nb[0];
    routing.token_stride = ids->nb[1];
    // What a dead tensor pointed to may be another's by now: the input lives on as our activations, or for somebody after
    // us; the weights wait for our result.
    bool const lives = router_input && (router_input_lives || router_input->data == activations->data);
    if (lives && routing.n_token == 1) routing.input = static_cast<const float *>(router_input->data);
    if (router_weights && ggml_nelements(router_weights) == int64_t{routing.n_rank} * routing.n_token)
        routing.weights = static_cast<const float *>(router_weights->data);
    if (streamer_.prices() && !is_last) { // the product that begins a visit meets what the norm gives
        ggml_tensor const *residual = residual_of(activations, routing.n_token);
        inverse_square_.resize(routing.n_token);
        for (uint32_t t = 0; t < routing.n_token; t++)
            inverse_square_[t] = static_cast<float>(inverse_square(residual, t));
        routing.inverse_square = inverse_square_.data();
    }
}

bool ExpertProduct::begin(uint32_t n_thread) {
    ggml_tensor const *activations = dst->src[1];
    bool const is_last = matrix_ + 1 == streamer_.layout().layers[layer_].matrices.size();
    read_routing(is_last);
    if (!streamer_.begin_product(layer_, matrix_, routing_)) return false;
    for (Row const &row : streamer_.skipped()) memset(row_of(row), 0, static_cast<size_t>(dst->ne[0]) * sizeof(float));
    if (collector && matrix_ == 0) collector->begin_layer(layer_, activations, routing_);

    n_type_ = 0;
    uint32_t most_rows = 0;
    for (uint32_t i = 0; i < streamer_.n_expert(); i++) {
        auto const type = static_cast<ggml_type>(streamer_.slice(i).type);
        ggml_type const vec_dot_type = cpu().type_traits(type)->vec_dot_type;
        most_rows = std::max(most_rows, streamer_.expert(i).n_row);
        if (std::find(vec_dot_types_, vec_dot_types_ + n_type_, vec_dot_type) == vec_dot_types_ + n_type_)
            vec_dot_types_[n_type_++] = vec_dot_type;
    }
    n_activation_ = static_cast<uint32_t>(activations->ne[1] * activations->ne[2]);
    has_last = is_last && tier && !streamer_.gpu_rows().empty();
    n_segment_ = n_activation_ < 2 * n_thread ? n_thread : 1;
    n_prepare = 0;
    for (uint32_t i = 0; i < n_type_; i++) {
        if (vec_dot_types_[i] == GGML_TYPE_F32) continue;
        row_bytes_[i] = ggml_row_size(vec_dot_types_[i], activations->ne[0]);
        quantized_[i] = scratch_.quantized[vec_dot_types_[i]].reserve(row_bytes_[i] * n_activation_);
    }
    KernelScratch::Held &held = scratch_.held;
    bool const done = held.source == activations && held.visit == streamer_.visit() &&
                      std::equal(vec_dot_types_, vec_dot_types_ + n_type_, held.types, held.types + held.n_type);
    if (!done && n_type_ > 0 && (n_type_ > 1 || vec_dot_types_[0] != GGML_TYPE_F32))
        n_prepare = n_type_ * n_activation_ * n_segment_;
    if (n_prepare * activations->ne[0] <= k_at_once * n_segment_) // sooner done than shared
        for (; n_prepare > 0; n_prepare--) prepare(n_prepare - 1);
    held.source = activations;
    held.visit = streamer_.visit();
    held.n_type = n_type_;
    std::copy_n(vec_dot_types_, n_type_, held.types);
    scratch_.reserve_threads(n_thread);
    // Decode: a few chunks an expert, so that threads end together. Batches: one a thread, since every chunk gathers
    // the expert's rows anew.
    auto const n_group = static_cast<uint32_t>((dst->ne[0] + k_few_group - 1) / k_few_group);
    n_chunk = most_rows >= k_batched_rows ? n_thread : std::min(2 * n_thread, n_group);
    return true;
}

bool ExpertProduct::on_gpu(uint32_t rank, uint32_t token) const {
    auto const expert = static_cast<uint32_t>(routing_.at(token, rank));
    ExpertLayer const &layer = streamer_.layout().layers[layer_];
    return expert < layer.n_expert && streamer_.on_gpu(layer.first + expert);
}

void ExpertProduct::look_ahead() {
    try {
        if (matrix_ == 0 && tier) tier->begin(layer_, dst->src[1], streamer_.gpu_rows());
    } catch (...) { // llama.cpp's threads are around us
        streamer_.fail_visit(caught());
    }
    streamer_.look_ahead(routing_);
}

void ExpertProduct::last() {
    try {
        tier->finish(dst);
    } catch (...) {
        streamer_.fail_visit(caught());
    }
}

void ExpertProduct::prepare(uint32_t item) {
    uint32_t const segment = item % n_segment_;
    uint32_t const row = item / n_segment_ % n_activation_;
    uint32_t const type = item / n_segment_ / n_activation_;
    if (vec_dot_types_[type] == GGML_TYPE_F32) return;
    ggml_tensor const *a = dst->src[1];
    int64_t const i11 = row % a->ne[1];
    int64_t const i12 = row / a->ne[1];
    if (has_last && a->ne[1] > 1 && on_gpu(static_cast<uint32_t>(i11), static_cast<uint32_t>(i12))) return;
    auto const *from = reinterpret_cast<const float *>(
        static_cast<const char *>(a->data) + static_cast<size_t>(i11) * a->nb[1] + static_cast<size_t>(i12) * a->nb[2]);
    // Whole blocks of the type, as ggml's threads share a row: the same blocks give the same bits.
    int64_t const block = ggml_blck_size(vec_dot_types_[type]);
    int64_t const n_block = a->ne[0] / block;
    int64_t const begin = n_block * segment / n_segment_;
    int64_t const end = n_block * (segment + 1) / n_segment_;
    uint8_t *to = scratch_.quantized[vec_dot_types_[type]].data() + row * row_bytes_[type] +
                  static_cast<size_t>(begin) * ggml_type_size(vec_dot_types_[type]);
    cpu().type_traits(vec_dot_types_[type])->from_float(from + begin * block, to, (end - begin) * block);
}

const uint8_t *ExpertProduct::activation(ggml_type vec_dot_type, Row row) const {
    ggml_tensor const *a = dst->src[1];
    auto const i11 = static_cast<size_t>(row.rank % a->ne[1]);
    if (vec_dot_type == GGML_TYPE_F32)
        return static_cast<const uint8_t *>(a->data) + i11 * a->nb[1] + size_t{row.token} * a->nb[2];
    auto const type =
        static_cast<size_t>(std::find(vec_dot_types_, vec_dot_types_ + n_type_, vec_dot_type) - vec_dot_types_);
    return quantized_[type] + (row.token * static_cast<size_t>(a->ne[1]) + i11) * row_bytes_[type];
}

float *ExpertProduct::row_of(Row row) const {
    return reinterpret_cast<float *>(static_cast<char *>(dst->data) + row.rank * dst->nb[1] + row.token * dst->nb[2]);
}

void ExpertProduct::compute(uint32_t expert_index, uint32_t chunk, uint32_t thread) {
    VisitExpert const &e = streamer_.expert(expert_index);
    auto const n = static_cast<uint32_t>(dst->ne[0]);
    uint32_t const group = e.n_row >= k_batched_rows ? k_row_group : k_few_group;
    uint32_t const per_chunk = ((n + n_chunk - 1) / n_chunk + group - 1) / group * group;
    uint32_t const begin = std::min(n, chunk * per_chunk);
    uint32_t const end = std::min(n, begin + per_chunk);
    if (begin < end) multiply(expert_index, begin, end, thread);
    if (!collector) return;
    const Row *rows = streamer_.rows().data() + e.first_row;
    collector->input(layer_, matrix_, dst->src[1], e.expert, rows, e.n_row, chunk, n_chunk);
    if (begin < end) collector->output(layer_, matrix_, dst, e.expert, rows, e.n_row, begin, end);
}

void ExpertProduct::multiply(uint32_t expert_index, uint32_t begin, uint32_t end, uint32_t thread) {
    VisitExpert const &e = streamer_.expert(expert_index);
    auto const type = static_cast<ggml_type>(streamer_.slice(expert_index).type);
    auto const *traits = cpu().type_traits(type);
    bool const batched = e.n_row >= k_batched_rows;
    auto const k = static_cast<uint32_t>(dst->src[0]->ne[0]);
    const Row *rows = streamer_.rows().data() + e.first_row;
    size_t const row_bytes = ggml_row_size(type, k);
    const uint8_t *weights = streamer_.weights(expert_index) + begin * row_bytes;
    if (!batched) {
        const uint8_t *x[k_batched_rows];
        float *y[k_batched_rows];
        for (uint32_t j = 0; j < e.n_row; j++) {
            x[j] = activation(traits->vec_dot_type, rows[j]);
            y[j] = row_of(rows[j]);
        }
        for (uint32_t r = begin; r < end; r++, weights += row_bytes)
            for (uint32_t j = 0; j < e.n_row; j++)
                traits->vec_dot(static_cast<int>(k), y[j] + r, 0, weights, 0, x[j], 0, 1);
        return;
    }
    KernelScratch::Batched &b = scratch_.batched(thread);
    size_t const x_bytes = ggml_row_size(traits->vec_dot_type, k);
    uint8_t *gathered = b.gathered.reserve(x_bytes * e.n_row);
    for (uint32_t j = 0; j < e.n_row; j++)
        memcpy(gathered + j * x_bytes, activation(traits->vec_dot_type, rows[j]), x_bytes);
    b.run(type, weights, k, end - begin, traits->vec_dot_type, e.n_row);
    for (uint32_t j = 0; j < e.n_row; j++)
        memcpy(row_of(rows[j]) + begin, b.result.data() + size_t{j} * (end - begin) * sizeof(float),
               (end - begin) * sizeof(float));
}

} // namespace emoe
