// What of a model goes to an accelerator, through ggml's public backend API.
//
// Dense weights, KV cache and attention go as a whole. Experts go by layer, the last layers first: a layer whose
// experts are there is computed by ggml's own kernels, between the dense nodes around it, with no way through the host.
// The contents are fixed when the model is loaded, so that runs repeat.
#pragma once

#include "base/arena.h"
#include "io/file.h"
#include "llama/index.h"

#include <ggml-backend.h>
#include <llama.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emoe {

// One tensor of many experts has one type only: a layer in which some matrix has several stays on the CPU.
bool has_one_type(const ExpertLayer &layer);

// Where a model's parts go; must live until llama.cpp has loaded the model.
class GpuParts {
public:
    // device: see gpu_device. n_gpu_layer: layers whose experts go there, at most.
    // tier: experts of other layers that go there one by one (see tier.h), ascending. Throws EMOE_ERR_ARGUMENT.
    GpuParts(const ModelIndex &index, uint32_t device, uint32_t n_gpu_layer, std::vector<uint32_t> tier = {});
    void apply(llama_model_params *params);
    bool on_gpu(uint32_t layer) const { return on_gpu_[layer] != 0; } // of the layout
    ggml_backend_dev_t device() const { return devices_[0]; }
    const std::vector<uint32_t> &tier() const { return tier_; }
    std::vector<uint8_t> experts(const Layout &layout) const; // by ExpertIndex 1 on the GPU; empty: none
    bool any_experts() const;
    uint64_t expert_bytes() const { return expert_bytes_; } // that go to the GPU

private:
    ggml_backend_dev_t devices_[2] = {nullptr, nullptr};
    std::vector<uint8_t> on_gpu_; // by layer of the layout
    std::vector<uint32_t> tier_;
    uint64_t expert_bytes_ = 0;
    std::vector<std::string> patterns_;
    std::vector<llama_model_tensor_buft_override> overrides_;
};

// Reads slices of experts from a model's files, one at a time. Throws EMOE_ERR_IO.
class SliceReader {
public:
    explicit SliceReader(const Layout &layout);
    const uint8_t *read(const Slice &slice); // valid until the next call

private:
    std::vector<std::unique_ptr<File>> files_;
    uint32_t alignment_ = 1;
    Arena staging_;
};

// Fills the expert tensors that llama.cpp has allocated on the GPU, from the model's files, when a graph first shows
// them: the shell has no bytes of experts.
class GpuExperts {
public:
    GpuExperts(const ModelIndex &index, const GpuParts &gpu_parts);
    // True when the weights are experts of ours on the GPU; they are filled then. Throws EMOE_ERR_IO.
    bool visit(ggml_tensor *weights);
    // Matrices that no graph has shown yet.
    size_t n_missing() const { return n_missing_; }

private:
    struct Stack {
        const ExpertLayer *layer;
        uint32_t matrix;
        bool filled = false;
    };
    void fill(const Stack &stack, ggml_tensor *weights);

    Layout layout_;
    std::unordered_map<std::string, Stack> stacks_; // by tensor name
    std::unordered_map<const ggml_tensor *, bool> known_;
    std::unique_ptr<SliceReader> reader_;
    size_t n_missing_ = 0;
};

} // namespace emoe
