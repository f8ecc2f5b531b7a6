// Tables that a graph only looks up by row: their GET_ROWS nodes become ours, and the rows come from the model's files.
//
// As with an expert product, two public fields make a node a CUSTOM node, whatever computes its rows' numbers before. A
// row becomes floats by what ggml's own GET_ROWS calls (to_float of the type's traits), so the bytes are the same.
#pragma once

#include "base/error.h"
#include "llama/index.h"
#include "pipeline/rows.h"

#include <ggml.h>

#include <array>
#include <functional>
#include <memory>
#include <vector>

namespace emoe {

class TableNodes {
public:
    // Of every table of the model; with no bytes, of none. fail: told of rows that could not be read, on a compute thread.
    using Fail = std::function<void(const Failure &)>;
    TableNodes(const ModelIndex &index, const RowReader::Params &params, Faults &faults, Fail fail);

    // True for a look-up in a table, which is ours then. A table that is used in another way meets DenseWeights.
    bool see(ggml_tensor *node);
    void set_probing(bool on) { probing_ = on; }          // rows are zeros
    const RowReader *rows() const { return rows_.get(); } // null: every table is in memory
    RowReader *rows() { return rows_.get(); }

private:
    struct Table {
        std::string name;
        const ggml_tensor *tensor = nullptr;
    };
    bool find(const ggml_tensor *weights, size_t *table);
    static void compute(ggml_tensor *dst, int ith, int nth, void *self);
    void look_up(ggml_tensor *dst);

    std::unique_ptr<RowReader> rows_;
    std::vector<Table> tables_; // as in rows_
    std::array<char, GGML_MAX_OP_PARAMS> op_params_ = {};
    Fail const fail_;
    bool probing_ = false;
};

} // namespace emoe
