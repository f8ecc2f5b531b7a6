#include "llama/profile.h"

#include "base/error.h"

#include <algorithm>
#include <cmath>
#include <fstream>

namespace emoe {

namespace {

constexpr char k_n_token[] = "edgemoe.calibration.n_token";
constexpr size_t k_n_stat = 5; // of an expert, how many tokens used it first (docs/quality.md)

} // namespace

GgufPtr open_calibration(const std::string &path) {
    if (!std::ifstream(path)) fail(EMOE_ERR_IO, "cannot read `%s`", path.c_str());
    gguf_init_params params = {};
    params.no_alloc = true;
    GgufPtr g(gguf_init_from_file(path.c_str(), params));
    if (!g) fail(EMOE_ERR_FORMAT, "`%s` is no calibration: llama.cpp cannot read it as a GGUF", path.c_str());
    return g;
}

std::vector<float> load_uses(const ModelIndex &index, const std::string &path) {
    GgufPtr const g = open_calibration(path);
    int64_t const key = gguf_find_key(g.get(), k_n_token);
    double const n_token = key >= 0 && gguf_get_kv_type(g.get(), key) == GGUF_TYPE_UINT64
                               ? static_cast<double>(gguf_get_val_u64(g.get(), key))
                               : 0;
    if (!(n_token > 0)) fail(EMOE_ERR_FORMAT, "`%s` is no calibration of `edgemoe calibrate`", path.c_str());
    std::ifstream file(path, std::ios::binary);
    std::vector<float> uses(index.layout.n_expert_total, 0.0f);
    bool any = false;
    for (ExpertLayer const &layer : index.layout.layers) {
        std::string const name = "blk." + std::to_string(layer.layer) + ".edgemoe.stats";
        int64_t const id = gguf_find_tensor(g.get(), name.c_str());
        if (id < 0) continue;
        std::vector<float> stats(layer.n_expert * k_n_stat);
        size_t const n_byte = stats.size() * sizeof(float);
        if (gguf_get_tensor_type(g.get(), id) != GGML_TYPE_F32 || gguf_get_tensor_size(g.get(), id) != n_byte)
            fail(EMOE_ERR_FORMAT, "`%s` is the calibration of another model: block %u has %u experts here",
                 path.c_str(), layer.layer, layer.n_expert);
        file.seekg(static_cast<std::streamoff>(gguf_get_data_offset(g.get()) + gguf_get_tensor_offset(g.get(), id)));
        file.read(reinterpret_cast<char *>(stats.data()), static_cast<std::streamsize>(n_byte));
        if (!file) fail(EMOE_ERR_IO, "`%s` ends before its header says", path.c_str());
        for (uint32_t e = 0; e < layer.n_expert; e++) {
            double const tokens = stats[e * k_n_stat];
            if (!(tokens >= 0)) fail(EMOE_ERR_FORMAT, "`%s` counts %g uses of an expert", path.c_str(), tokens);
            uses[layer.first + e] = static_cast<float>(std::min(1.0, tokens / n_token));
        }
        any = true;
    }
    if (!any)
        fail(EMOE_ERR_FORMAT, "`%s` is the calibration of another model: it knows none of the experts", path.c_str());
    return uses;
}

} // namespace emoe
