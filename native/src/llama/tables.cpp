#include "llama/tables.h"

#include <cstring>

namespace emoe {

namespace {

// A look-up of rows of a table by numbers, one after another.
bool is_look_up(const ggml_tensor *node) {
    ggml_tensor const *table = node->src[0], *numbers = node->src[1];
    return numbers && numbers->type == GGML_TYPE_I32 && node->type == GGML_TYPE_F32 && table->ne[2] == 1 &&
           table->ne[3] == 1 && numbers->ne[1] == 1 && numbers->ne[2] == 1 && numbers->ne[3] == 1 &&
           numbers->nb[0] == sizeof(int32_t) && node->nb[0] == sizeof(float);
}

} // namespace

TableNodes::TableNodes(const ModelIndex &index, const RowReader::Params &params, Faults &faults, Fail fail)
    : fail_(std::move(fail)) {
    if (params.bytes == 0) return;
    std::vector<RowTable> tables;
    for (TensorInfo const &t : index.dense) {
        if (!t.is_table) continue;
        auto const n_row = static_cast<uint64_t>(t.ne[1]);
        tables.push_back({t.file, t.offset, static_cast<uint32_t>(t.bytes / n_row), n_row});
        tables_.push_back({t.name, nullptr});
    }
    if (tables.empty()) return;
    rows_ = std::make_unique<RowReader>(index.layout.paths, std::move(tables), params, faults);
    // What ggml_custom_4d packs into op_params serves every node (see Interposer).
    ggml_init_params init = {};
    init.mem_size = 4 * ggml_tensor_overhead();
    init.no_alloc = true;
    ggml_context *ctx = ggml_init(init);
    ggml_tensor *source = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    ggml_tensor *node = ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, &source, 1, compute, GGML_N_TASKS_MAX, this);
    memcpy(op_params_.data(), node->op_params, op_params_.size());
    ggml_free(ctx);
}

bool TableNodes::see(ggml_tensor *node) {
    size_t table;
    // A reused graph brings the same nodes again, already CUSTOM.
    if ((node->op != GGML_OP_GET_ROWS && node->op != GGML_OP_CUSTOM) || !node->src[0] || !find(node->src[0], &table) ||
        !is_look_up(node))
        return false;
    node->op = GGML_OP_CUSTOM;
    memcpy(node->op_params, op_params_.data(), op_params_.size());
    return true;
}

bool TableNodes::find(const ggml_tensor *weights, size_t *table) {
    for (size_t i = 0; i < tables_.size(); i++) {
        if (tables_[i].tensor != weights && tables_[i].name != ggml_get_name(weights)) continue;
        tables_[i].tensor = weights;
        *table = i;
        return true;
    }
    return false;
}

void TableNodes::compute(ggml_tensor *dst, int ith, int, void *self) {
    if (ith == 0) static_cast<TableNodes *>(self)->look_up(dst);
}

// A row is little work, and its reads are few: one thread does it all, the others wait at the node's end.
void TableNodes::look_up(ggml_tensor *dst) {
    size_t table;
    if (probing_ || !find(dst->src[0], &table)) {
        memset(dst->data, 0, ggml_nbytes(dst));
        return;
    }
    ggml_tensor const *weights = dst->src[0], *numbers = dst->src[1];
    ggml_to_float_t const to_float = ggml_get_type_traits(weights->type)->to_float;
    try {
        Failure const failure =
            rows_->gather(table, static_cast<const int32_t *>(numbers->data), static_cast<size_t>(numbers->ne[0]),
                          [&](size_t i, const uint8_t *row) {
                              auto *out = reinterpret_cast<float *>(static_cast<char *>(dst->data) + i * dst->nb[1]);
                              if (weights->type == GGML_TYPE_F32)
                                  memcpy(out, row, static_cast<size_t>(weights->ne[0]) * sizeof(float));
                              else
                                  to_float(row, out, weights->ne[0]);
                          });
        if (failure) fail_({failure.status, "rows of `" + tables_[table].name + "`: " + failure.message});
    } catch (...) { // ggml is between us and who asked
        fail_(caught());
    }
}

} // namespace emoe
