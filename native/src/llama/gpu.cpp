#include "llama/gpu.h"

#include "base/error.h"
#include "io/reader.h"
#include "llama/devices.h"

#include <algorithm>

namespace emoe {

bool has_one_type(const ExpertLayer &layer) {
    for (uint32_t m = 0; m < layer.matrices.size(); m++)
        for (uint32_t e = 1; e < layer.n_expert; e++)
            if (layer.slice(e, m).type != layer.slice(0, m).type) return false;
    return true;
}

GpuParts::GpuParts(const ModelIndex &index, uint32_t device, uint32_t n_gpu_layer, std::vector<uint32_t> tier)
    : on_gpu_(index.layout.layers.size(), 0), tier_(std::move(tier)) {
    devices_[0] = gpu_device(device);
    for (size_t i = 0; i < tier_.size(); i++)
        if (!devices_[0] || tier_[i] >= index.layout.n_expert_total || (i > 0 && tier_[i] <= tier_[i - 1]))
            fail(EMOE_ERR_ARGUMENT, "expert %u cannot be on device %u: a GPU takes experts below %u, ascending",
                 tier_[i], device, index.layout.n_expert_total);
    if (!devices_[0]) return;
    auto const &layers = index.layout.layers;
    for (size_t i = layers.size(); i-- > 0 && n_gpu_layer > 0;) {
        if (!has_one_type(layers[i])) continue;
        on_gpu_[i] = 1;
        n_gpu_layer--;
        for (Slice const &s : layers[i].slices) expert_bytes_ += s.bytes;
    }
    for (size_t i = 0; i < layers.size(); i++)
        if (!on_gpu_[i])
            patterns_.push_back("^blk\\." + std::to_string(layers[i].layer) +
                                "\\.ffn_(up|gate|down|gate_up)_(ch|)exps");
    for (std::string const &pattern : patterns_)
        overrides_.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
    overrides_.push_back({nullptr, nullptr});
}

std::vector<uint8_t> GpuParts::experts(const Layout &layout) const {
    std::vector<uint8_t> on_gpu;
    if (expert_bytes_ == 0 && tier_.empty()) return on_gpu;
    on_gpu.resize(layout.n_expert_total, 0);
    for (size_t l = 0; l < layout.layers.size(); l++)
        if (on_gpu_[l]) std::fill_n(on_gpu.begin() + layout.layers[l].first, layout.layers[l].n_expert, uint8_t{1});
    for (uint32_t const e : tier_) {
        if (on_gpu[e]) fail(EMOE_ERR_ARGUMENT, "expert %u is on the GPU with its whole layer", e);
        on_gpu[e] = 1;
    }
    return on_gpu;
}

bool GpuParts::any_experts() const { return expert_bytes_ != 0; }

void GpuParts::apply(llama_model_params *params) {
    if (!devices_[0]) return;
    params->devices = devices_;
    params->n_gpu_layers = 1 << 20; // all
    params->split_mode = LLAMA_SPLIT_MODE_NONE;
    params->main_gpu = 0;
    params->tensor_buft_overrides = overrides_.data();
}

GpuExperts::GpuExperts(const ModelIndex &index, const GpuParts &gpu_parts) : layout_(index.layout) {
    for (uint32_t l = 0; l < layout_.layers.size(); l++) {
        if (!gpu_parts.on_gpu(l)) continue;
        for (uint32_t m = 0; m < layout_.layers[l].matrices.size(); m++)
            stacks_.emplace(layout_.layers[l].matrices[m].name, Stack{&layout_.layers[l], m});
    }
    n_missing_ = stacks_.size();
    if (n_missing_ == 0) return;
    reader_ = std::make_unique<SliceReader>(layout_);
}

bool GpuExperts::visit(ggml_tensor *weights) {
    if (stacks_.empty()) return false;
    auto const known = known_.find(weights);
    if (known != known_.end()) return known->second;
    auto const found = stacks_.find(ggml_get_name(weights));
    bool const ours = found != stacks_.end();
    if (ours && !found->second.filled) {
        fill(found->second, weights);
        found->second.filled = true;
        n_missing_--;
        if (n_missing_ == 0) reader_.reset();
    }
    known_.emplace(weights, ours);
    return ours;
}

void GpuExperts::fill(const Stack &stack, ggml_tensor *weights) {
    ExpertLayer const &layer = *stack.layer;
    for (uint32_t e = 0; e < layer.n_expert; e++) {
        Slice const &s = layer.slice(e, stack.matrix);
        if (s.type != weights->type || s.bytes != weights->nb[2])
            fail(EMOE_ERR_UNSUPPORTED, "`%s` has another form on the GPU", ggml_get_name(weights));
        ggml_backend_tensor_set(weights, reader_->read(s), e * weights->nb[2], s.bytes);
    }
}

SliceReader::SliceReader(const Layout &layout) {
    for (std::string const &path : layout.paths) {
        files_.push_back(std::make_unique<File>(path, FileAccess::direct));
        alignment_ = std::max(alignment_, files_.back()->alignment());
    }
}

const uint8_t *SliceReader::read(const Slice &slice) {
    Span const span = aligned_span(slice, alignment_);
    if (staging_.size() < span.bytes) staging_ = Arena(span.bytes);
    std::string const error =
        read_now({files_[slice.file].get(), span.offset, span.bytes, span.need, alignment_, staging_.data(), 0});
    if (!error.empty()) fail(EMOE_ERR_IO, "%s", error.c_str());
    return staging_.data() + span.skip;
}

} // namespace emoe
