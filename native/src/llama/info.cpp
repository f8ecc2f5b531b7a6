#include "llama/info.h"

#include "base/error.h"
#include "llama/gpu.h"

#include <algorithm>
#include <cstdio>
#include <map>

namespace emoe {

namespace {

void copy_text(char *to, size_t size, const std::string &from) { snprintf(to, size, "%s", from.c_str()); }

// Cache bytes that an expert of a layer occupies: the largest place of one.
uint64_t slot_bytes_of(const ExpertLayer &layer) {
    uint64_t bytes = 0;
    for (Place const &place : layer.places) bytes = std::max(bytes, place.slot_bytes);
    return bytes;
}

uint64_t mean_expert_bytes(const ExpertLayer &layer) {
    uint64_t bytes = 0;
    for (Slice const &s : layer.slices) bytes += s.bytes;
    return bytes / layer.n_expert;
}

} // namespace

emoe_model_info model_info(const ModelIndex &m) {
    emoe_model_info i = {};
    i.n_layer = static_cast<uint32_t>(m.number("block_count", 0));
    i.n_moe_layer = static_cast<uint32_t>(m.layout.layers.size());
    i.n_expert_used = m.layout.n_expert_used;
    i.n_ctx_train = static_cast<uint32_t>(m.number("context_length", 0));
    i.n_embd = static_cast<uint32_t>(m.number("embedding_length", 0));
    i.n_vocab = static_cast<uint32_t>(m.n_vocab());
    i.n_file = static_cast<uint32_t>(m.layout.paths.size());
    i.direct_io = m.direct_io ? 1 : 0;
    i.file_bytes = m.file_bytes;
    i.dense_bytes = m.dense_bytes;
    i.dense_token_bytes = m.dense_token_bytes;
    i.table_bytes = m.table_bytes;
    i.expert_bytes = m.expert_bytes;
    i.token_bytes = m.token_bytes;
    i.n_expert_total = m.layout.n_expert_total;
    i.identity = m.identity;
    for (ExpertLayer const &layer : m.layout.layers) {
        i.n_expert = std::max(i.n_expert, layer.n_expert);
    }
    SlotClasses const classes = slot_classes(m.layout);
    i.slot_bytes = classes.max_bytes();
    i.slot_min_bytes = classes.min_bytes();
    copy_text(i.architecture, sizeof i.architecture, m.architecture);
    copy_text(i.name, sizeof i.name, m.name);
    i.struct_size = sizeof i;
    return i;
}

emoe_layer_info layer_info(const ModelIndex &m, uint32_t index) {
    auto const &layers = m.layout.layers;
    if (index >= layers.size())
        fail(EMOE_ERR_ARGUMENT, "there is no mixture layer %u: there are %zu", index, layers.size());
    ExpertLayer const &layer = layers[index];
    emoe_layer_info i = {};
    i.layer = layer.layer;
    i.n_expert = layer.n_expert;
    i.n_matrix = static_cast<uint32_t>(layer.matrices.size());
    i.slot_bytes = slot_bytes_of(layer);
    i.expert_bytes = mean_expert_bytes(layer);
    double weights = 0;
    std::string types;
    for (uint32_t k = 0; k < layer.matrices.size(); k++) {
        Matrix const &matrix = layer.matrices[k];
        weights += static_cast<double>(matrix.n_col) * matrix.n_row;
        std::map<uint16_t, uint32_t> count;
        for (uint32_t e = 0; e < layer.n_expert; e++) count[layer.slice(e, k).type]++;
        auto const most = std::max_element(count.begin(), count.end(),
                                           [](auto const &a, auto const &b) { return a.second < b.second; });
        types += (types.empty() ? "" : " ") + matrix.role + "=" + ggml_type_name(static_cast<ggml_type>(most->first)) +
                 (count.size() > 1 ? "+" : "");
    }
    i.bits_per_weight = static_cast<float>(8.0 * static_cast<double>(i.expert_bytes) / weights);
    copy_text(i.types, sizeof i.types, types);
    i.struct_size = sizeof i;
    return i;
}

emoe_model_info host_info(const ModelIndex &m, const emoe_setup &setup) {
    emoe_model_info info = model_info(m);
    if (setup.device == 0 || (setup.n_gpu_layer == 0 && setup.n_gpu_expert == 0)) return info;
    GpuParts const gpu_parts(m, setup.device, setup.n_gpu_layer,
                             std::vector<uint32_t>(setup.gpu_experts, setup.gpu_experts + setup.n_gpu_expert));
    std::vector<uint8_t> const on_gpu = gpu_parts.experts(m.layout);
    if (on_gpu.empty()) return info; // no layer can be there
    uint64_t expert_bytes = 0, slot_bytes = 0, n_gone = 0;
    for (ExpertLayer const &layer : m.layout.layers) {
        auto const first = on_gpu.begin() + layer.first;
        auto const n = static_cast<uint64_t>(std::count(first, first + layer.n_expert, 1));
        expert_bytes += mean_expert_bytes(layer) * n;
        slot_bytes += slot_bytes_of(layer) * n;
        n_gone += n;
    }
    double const left = 1 - static_cast<double>(expert_bytes) / static_cast<double>(info.expert_bytes);
    info.token_bytes = static_cast<uint64_t>(static_cast<double>(info.token_bytes) * left);
    info.expert_bytes -= expert_bytes;
    info.slot_bytes = std::max(info.slot_min_bytes, info.slot_bytes - std::min(info.slot_bytes, slot_bytes));
    info.n_expert_total -= n_gone;
    return info;
}

} // namespace emoe
