#include "llama/columns.h"

#include "llama/cpu.h"
#include "llama/kernels.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

namespace emoe {

namespace {

// llama.cpp shows attention a multiple of this many cells of the KV cache; from k_split_cells on ggml divides the
// cells of a single query among the threads.
constexpr int64_t k_cell_pad = 256;
constexpr int64_t k_split_cells = 512;

template <class T>
T *at(const ggml_tensor *t, int64_t i1, int64_t i2, int64_t i3) {
    return reinterpret_cast<T *>(static_cast<char *>(t->data) + static_cast<size_t>(i1) * t->nb[1] +
                                 static_cast<size_t>(i2) * t->nb[2] + static_cast<size_t>(i3) * t->nb[3]);
}

// dst = src[0] x src[1] as ggml_compute_forward_mul_mat has it for one column: this thread's share of the rows.
void multiply(ggml_tensor *dst, int ith, int nth) {
    ggml_tensor const *w = dst->src[0];
    ggml_tensor const *x = dst->src[1];
    auto const *traits = cpu().type_traits(w->type);
    ggml_type const dot_type = traits->vec_dot_type;
    bool const converts = dot_type != x->type;
    size_t const x_bytes = ggml_row_size(dot_type, x->ne[0]);
    thread_local std::vector<uint8_t> converted;
    if (converts) converted.resize(std::max(converted.size(), x_bytes * static_cast<size_t>(x->ne[1])));
    int64_t const begin = w->ne[1] * ith / nth, end = w->ne[1] * (ith + 1) / nth;
    int64_t const r2 = x->ne[2] / w->ne[2], r3 = x->ne[3] / w->ne[3];
    for (int64_t i3 = 0; i3 < x->ne[3]; i3++)
        for (int64_t i2 = 0; i2 < x->ne[2]; i2++) {
            const uint8_t *column[k_max_columns];
            for (int64_t j = 0; j < x->ne[1]; j++) {
                column[j] = at<uint8_t>(x, j, i2, i3);
                if (!converts) continue;
                uint8_t *to = converted.data() + static_cast<size_t>(j) * x_bytes;
                cpu().type_traits(dot_type)->from_float(at<float>(x, j, i2, i3), to, x->ne[0]);
                column[j] = to;
            }
            for (int64_t r = begin; r < end; r++)
                for (int64_t j = 0; j < x->ne[1]; j++)
                    traits->vec_dot(static_cast<int>(w->ne[0]), at<float>(dst, j, i2, i3) + r, 0,
                                    at<uint8_t>(w, r, i2 / r2, i3 / r3), 0, column[j], 0, 1);
        }
}

} // namespace

// A one-node graph of FLASH_ATTN_EXT for one query, run by a thread of its own: within llama.cpp's pool a graph gets
// one thread, and how the cells are divided, hence the rounding, depends on the number of threads.
class Columns::Attention {
public:
    Attention() {
        ggml_init_params params = {};
        params.mem_size = 8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false);
        params.no_alloc = true;
        ctx_ = ggml_init(params);
        for (int i = 0; i < 4; i++)
            source_[i] = ggml_new_tensor_4d(ctx_, i == 0 ? GGML_TYPE_F32 : GGML_TYPE_F16, 32, 1, 1, 1);
        out_ = ggml_flash_attn_ext(ctx_, source_[0], source_[1], source_[2], source_[3], 1.0f, 0.0f, 0.0f);
        graph_ = ggml_new_graph_custom(ctx_, 8, false);
        ggml_build_forward_expand(graph_, out_);
        thread_ = std::thread([this] { run(); });
    }
    ~Attention() {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            stop_ = true;
        }
        changed_.notify_all();
        thread_.join();
        ggml_free(ctx_);
    }
    // By every thread of the pool.
    void compute(Work *work, const std::vector<uint32_t> &n_past, int ith, int nth);

private:
    void run();
    void query(int64_t i, int64_t s);
    static void shape(ggml_tensor *to, const ggml_tensor *from) {
        to->type = from->type;
        std::copy_n(from->ne, GGML_MAX_DIMS, to->ne);
        std::copy_n(from->nb, GGML_MAX_DIMS, to->nb);
        to->data = from->data;
    }

    ggml_context *ctx_ = nullptr;
    ggml_cgraph *graph_ = nullptr;
    ggml_tensor *source_[4] = {}; // query, keys, values, mask
    ggml_tensor *out_ = nullptr;
    Buffer work_;
    std::mutex mutex_; // guards what follows
    std::condition_variable changed_;
    Work *asked_ = nullptr;
    const uint32_t *n_past_ = nullptr;
    int n_thread_ = 1;
    bool stop_ = false;
    std::thread thread_;
};

struct Columns::Work {
    explicit Work(Columns *columns) : owner(columns) {
        // ggml_custom_4d packs function, threads and user data in a layout of its own.
        ggml_init_params params = {};
        params.mem_size = 4 * ggml_tensor_overhead();
        params.no_alloc = true;
        ggml_context *ctx = ggml_init(params);
        ggml_tensor *source = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
        ggml_tensor *made =
            ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, &source, 1, Columns::compute, GGML_N_TASKS_MAX, this);
        memcpy(custom, made->op_params, sizeof custom);
        ggml_free(ctx);
    }
    Columns *owner;
    ggml_tensor *node = nullptr;
    ggml_op op = GGML_OP_NONE;
    char original[GGML_MAX_OP_PARAMS] = {};
    char custom[GGML_MAX_OP_PARAMS] = {};
    bool done = false; // of an attention node, guarded by Attention::mutex_
};

void Columns::Attention::compute(Work *work, const std::vector<uint32_t> &n_past, int ith, int nth) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (ith == 0) {
        asked_ = work;
        n_past_ = n_past.data();
        n_thread_ = nth;
        changed_.notify_all();
    }
    changed_.wait(lock, [&] { return work->done; });
}

void Columns::Attention::run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        changed_.wait(lock, [this] { return stop_ || asked_; });
        if (stop_) return;
        lock.unlock(); // the pool's threads wait: nobody changes what was asked
        ggml_tensor const *queries = asked_->node->src[0];
        for (int64_t s = 0; s < queries->ne[3]; s++)
            for (int64_t i = 0; i < queries->ne[1]; i++) query(i, s);
        lock.lock();
        asked_->done = true;
        asked_ = nullptr;
        changed_.notify_all();
    }
}

// Query i of sequence s.
void Columns::Attention::query(int64_t i, int64_t s) {
    ggml_tensor *node = asked_->node;
    for (int j = 0; j < 4; j++) {
        shape(source_[j], node->src[j]);
        source_[j]->ne[3] = 1;
    }
    shape(out_, node);
    memcpy(out_->op_params, asked_->original, sizeof asked_->original);
    out_->src[4] = node->src[4]; // sinks: a value a head
    // Of the cells those that this token's own graph would show.
    int64_t const n_cell = std::min(node->src[1]->ne[1], (n_past_[s] + i + k_cell_pad) / k_cell_pad * k_cell_pad);
    source_[0]->ne[1] = source_[3]->ne[1] = 1;
    source_[0]->data = at<void>(node->src[0], i, 0, s);
    source_[1]->data = at<void>(node->src[1], 0, 0, s);
    source_[2]->data = at<void>(node->src[2], 0, 0, s);
    source_[1]->ne[1] = source_[2]->ne[1] = source_[3]->ne[0] = n_cell;
    source_[3]->data = at<void>(node->src[3], i, 0, s);
    out_->ne[2] = out_->ne[3] = 1;
    out_->data = at<void>(node, 0, i, s);
    ggml_cplan plan = cpu().graph_plan(graph_, n_thread_, nullptr);
    plan.work_data = work_.reserve(plan.work_size);
    cpu().graph_compute(graph_, &plan);
}

Columns::Columns() = default;
Columns::~Columns() = default;

void Columns::begin_learning() {
    mode_ = Mode::learn;
    single_.clear();
    ops_.clear();
}

void Columns::begin(std::vector<uint32_t> n_past) {
    mode_ = Mode::columns;
    n_past_ = std::move(n_past);
    n_product_ = 0;
    n_node_ = 0;
    n_work_ = 0;
}

void Columns::end() {
    for (; n_work_ > 0; n_work_--) {
        Work const &work = *works_[n_work_ - 1];
        work.node->op = work.op;
        memcpy(work.node->op_params, work.original, sizeof work.original);
    }
    mode_ = Mode::off;
}

void Columns::rewrite(ggml_tensor *node) {
    if (n_work_ == works_.size()) works_.push_back(std::make_unique<Work>(this));
    Work &work = *works_[n_work_++];
    work.node = node;
    work.op = node->op;
    work.done = false;
    memcpy(work.original, node->op_params, sizeof work.original);
    node->op = GGML_OP_CUSTOM;
    memcpy(node->op_params, work.custom, sizeof work.custom);
}

void Columns::see(ggml_tensor *node, std::string *violation) {
    if (mode_ == Mode::off) return;
    if (mode_ == Mode::learn) {
        ops_.push_back(node->op);
    } else {
        // Some architectures attend otherwise to several tokens than to one (MiniMax M3).
        bool const same = n_node_ < ops_.size() && ops_[n_node_] == node->op;
        n_node_++;
        if (!same && violation->empty()) *violation = "its graph of several tokens is another than that of one";
    }
    if (node->op == GGML_OP_MUL_MAT) {
        ggml_tensor const *x = node->src[1];
        if (mode_ == Mode::learn) {
            single_.push_back(x->ne[1] == 1 ? 1 : 0);
            return;
        }
        bool const known = n_product_ < single_.size();
        bool const single = known && single_[n_product_] != 0;
        n_product_++;
        if (known && (!single || x->ne[1] == 1)) return; // as in a graph of one token, or none of the drafted
        auto const *traits = cpu().type_traits(node->src[0]->type);
        bool const fits = known && x->ne[1] <= k_max_columns && traits->vec_dot &&
                          (x->type == traits->vec_dot_type || x->type == GGML_TYPE_F32) &&
                          x->nb[0] == ggml_type_size(x->type);
        if (fits)
            rewrite(node);
        else if (violation->empty())
            *violation = std::string("the product `") + ggml_get_name(node) + "` cannot be computed token by token";
    } else if (node->op == GGML_OP_FLASH_ATTN_EXT && mode_ == Mode::columns &&
               (node->src[0]->ne[1] > 1 || node->src[0]->ne[3] > 1)) {
        bool const splits = (node->src[1]->type == GGML_TYPE_F16 || node->src[1]->type == GGML_TYPE_F32) &&
                            node->src[1]->ne[1] >= k_split_cells;
        if (!splits) return; // query by query already, and cells that are masked change nothing
        bool const fits = node->src[0]->ne[3] == static_cast<int64_t>(n_past_.size()) && node->src[3] &&
                          node->src[3]->ne[3] == node->src[0]->ne[3] && node->src[0]->ne[1] <= k_max_columns;
        if (fits) {
            try { // llama.cpp is between us and who asked
                if (!attention_) attention_ = std::make_unique<Attention>();
                rewrite(node);
            } catch (const std::system_error &) {
                *violation = "the system gives no thread for its attention";
            }
        } else if (violation->empty()) {
            *violation = std::string("the attention `") + ggml_get_name(node) + "` cannot be computed token by token";
        }
    }
}

void Columns::compute(ggml_tensor *dst, int ith, int nth, void *user) {
    auto *work = static_cast<Work *>(user);
    if (work->op == GGML_OP_MUL_MAT)
        multiply(dst, ith, nth);
    else
        work->owner->attention_->compute(work, work->owner->n_past_, ith, nth);
}

} // namespace emoe
