#include "llama/measure.h"

#include "base/error.h"
#include "base/machine.h"
#include "llama/cpu.h"
#include "llama/devices.h"
#include "llama/gpu.h"
#include "llama/kernels.h"
#include "llama/log.h"
#include "llama/owned.h"
#include "llama/refusals.h"
#include "llama/shell.h"
#include "pipeline/predictor.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emoe {

namespace {

// What a backend adds to a tensor at most: the end of its last row is padded to so many elements (CUDA), and its
// beginning is aligned.
constexpr int64_t k_row_padding = 512;

// llama.cpp rounds contexts up to it: of the whole, so that it must be of each sequence's part already.
constexpr uint32_t k_ctx_pad = 256;

uint32_t padded_ctx(uint32_t n_ctx) { return (n_ctx + k_ctx_pad - 1) / k_ctx_pad * k_ctx_pad; }

std::atomic<bool> g_loaded{false};

} // namespace

bool has_loaded() { return g_loaded.load(); }

void note_loaded() { g_loaded.store(true); }

llama_model_params model_params() {
    (void)cpu(); // llama.cpp has been started
    static ggml_backend_dev_t no_devices[] = {nullptr};
    llama_model_params p = llama_model_default_params();
    p.devices = no_devices;
    p.n_gpu_layers = 0;
    p.use_extra_bufts = false; // repacking would copy the declared experts
    p.load_mode = LLAMA_LOAD_MODE_MMAP;
    p.lazy_mode = LLAMA_LAZY_MODE_OFF;
    return p;
}

uint32_t kv_type_of(uint32_t asked) {
    if (asked == 0) return GGML_TYPE_F16;
    if (asked != GGML_TYPE_F16 && asked != GGML_TYPE_F32 && asked != GGML_TYPE_Q8_0)
        fail(EMOE_ERR_ARGUMENT, "a KV cache of type %u", asked);
    return asked;
}

uint32_t n_sequence(const emoe_setup &setup) { return std::max(1u, setup.n_sequence); }

uint32_t n_rows(const emoe_setup &setup) { return std::max(setup.n_outputs, n_sequence(setup)); }
namespace {

// llama.cpp's defaults mean: as the model says.
void scale_rope(const emoe_setup &setup, llama_context_params *p) {
    auto const given = [&setup](uint32_t bit) { return (setup.rope_given & bit) != 0; };
    if (given(EMOE_ROPE_SCALING)) p->rope_scaling_type = static_cast<llama_rope_scaling_type>(setup.rope_scaling);
    if (given(EMOE_ROPE_FREQ_BASE)) p->rope_freq_base = setup.rope_freq_base;
    if (given(EMOE_ROPE_FREQ_SCALE)) p->rope_freq_scale = setup.rope_freq_scale;
    if (given(EMOE_YARN_EXT_FACTOR)) p->yarn_ext_factor = setup.yarn_ext_factor;
    if (given(EMOE_YARN_ATTN_FACTOR)) p->yarn_attn_factor = setup.yarn_attn_factor;
    if (given(EMOE_YARN_BETA_FAST)) p->yarn_beta_fast = setup.yarn_beta_fast;
    if (given(EMOE_YARN_BETA_SLOW)) p->yarn_beta_slow = setup.yarn_beta_slow;
    if (given(EMOE_YARN_ORIG_CTX)) p->yarn_orig_ctx = setup.yarn_orig_ctx;
}

} // namespace

llama_context_params context_params(const emoe_setup &setup) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = n_sequence(setup) * padded_ctx(setup.n_ctx);
    p.n_batch = setup.n_ubatch;
    p.n_ubatch = setup.n_ubatch;
    p.n_seq_max = n_sequence(setup);
    p.n_outputs_max = n_rows(setup);
    p.n_threads = static_cast<int32_t>(setup.n_threads);
    p.n_threads_batch = static_cast<int32_t>(setup.n_threads);
    p.type_k = static_cast<ggml_type>(setup.kv_type);
    p.type_v = static_cast<ggml_type>(setup.kv_type);
    p.offload_kqv = setup.device != 0;
    p.op_offload = false;
    p.swa_full = true; // what was computed here can be cut at any token
    p.no_perf = true;
    scale_rope(setup, &p);
    return p;
}

ContextBuffers parse_buffers(const std::string &log, const char *gpu) {
    ContextBuffers b;
    std::string const mark = gpu ? std::string(" ") + gpu + " " : "";
    uint64_t gpu_kv = 0;
    uint64_t cells = 0; // of the caches' own lines, which are right also where nothing is allocated
    size_t begin = 0;
    while (begin < log.size()) {
        size_t end = log.find('\n', begin);
        if (end == std::string::npos) end = log.size();
        std::string const line = log.substr(begin, end - begin);
        begin = end + 1;
        size_t const eq = line.find("size = ");
        if (eq == std::string::npos || line.find("MiB", eq) == std::string::npos) continue;
        // Printed with two decimals: half a hundredth more, so that the sum is never short.
        auto const bytes =
            static_cast<uint64_t>((strtod(line.c_str() + eq + strlen("size = "), nullptr) + 0.005) * 1048576.0);
        bool const there = gpu && line.find(mark) != std::string::npos; // not "CUDA_Host"
        if (there && line.find("compute buffer") != std::string::npos)
            b.gpu_bytes += bytes;
        else if (there && line.find("model buffer") != std::string::npos)
            b.gpu_model_bytes += bytes;
        else if (there)
            gpu_kv += bytes;
        else if (line.find("compute buffer") != std::string::npos)
            b.compute_bytes += bytes;
        else if (line.find("output buffer") != std::string::npos)
            b.output_bytes += bytes;
        else if (line.find("cells,") != std::string::npos)
            cells += bytes; // "size = 11.25 MiB (512 cells, 30 layers, ..."
        else if (line.find("buffer size") != std::string::npos && line.find("model buffer") == std::string::npos)
            b.kv_bytes += bytes; // "KV buffer", "RS buffer" and their like
    }
    if (gpu)
        b.gpu_bytes += std::max(gpu_kv, cells); // all of it: every layer is there
    else
        b.kv_bytes = std::max(b.kv_bytes, cells);
    return b;
}

uint64_t output_bytes(const ContextBuffers &buffers, const ModelIndex &index, const emoe_setup &setup) {
    // llama.cpp begins with one row of logits, and takes the others when they are first asked for.
    uint64_t const row_bytes = index.n_vocab() * sizeof(float);
    uint64_t const rows = std::min(n_rows(setup), setup.n_ubatch);
    uint64_t const bytes = std::max<uint64_t>(buffers.output_bytes, rows * row_bytes);
    // Of several sequences each keeps its own.
    return n_sequence(setup) > 1 ? bytes + uint64_t{n_sequence(setup)} * setup.n_outputs * row_bytes : bytes;
}

WorkSpace::WorkSpace(const ModelIndex &index, const emoe_setup &setup, uint64_t compute_bytes)
    : n_ubatch_(setup.n_ubatch), compute_bytes_(compute_bytes), n_outputs_(n_rows(setup)) {
    logits_row_bytes_ = index.n_vocab() * sizeof(float);
    uint64_t widest = 0;
    for (TensorInfo const &t : index.dense)
        if (t.ne[1] > 1 && can_compute(t.type))
            widest = std::max<uint64_t>(widest, ggml_row_size(cpu().type_traits(t.type)->vec_dot_type, t.ne[0]));
    // The widest activations in the form that their weights want, and half a MiB a thread for the tiles of its kernels.
    backend_bytes_ = n_ubatch_ * widest + setup.n_threads * (uint64_t{640} << 10);
    if (index.n_router_input != 0 && setup.prefetch != EMOE_PREFETCH_OFF)
        predictor_bytes_ = Predictor::bytes(index.layout.shape(), index.n_router_input);
    backend_bytes_ += predictor_bytes_;
    for (uint32_t n = 1;; n *= 2) {
        scratch_bytes_.push_back(emoe::scratch_bytes(index.layout, std::min(n, n_ubatch_), setup.n_threads));
        if (n >= n_ubatch_) break;
    }
}

uint64_t WorkSpace::scratch_bytes() const { return scratch_bytes_.back() + backend_bytes_; }

uint64_t WorkSpace::bytes(uint32_t n_token) const {
    auto const logits = [this](uint32_t n) { return logits_row_bytes_ * std::min(n, n_outputs_); };
    // Activations grow with the tokens; a MiB for what does not.
    uint64_t const activations = compute_bytes_ - std::min(compute_bytes_, logits(n_ubatch_));
    uint64_t const compute = activations * n_token / n_ubatch_ + logits(n_token) + (uint64_t{1} << 20);
    size_t i = 0;
    while ((uint32_t{1} << i) < n_token) i++;
    return std::min(compute, compute_bytes_) + scratch_bytes_[std::min(i, scratch_bytes_.size() - 1)] + backend_bytes_;
}

uint64_t WorkSpace::decode_bytes() const { return bytes(std::min(k_decode_tokens, n_ubatch_)); }

uint64_t WorkSpace::extra_bytes(uint32_t n_token) const {
    return n_token <= k_decode_tokens ? 0 : bytes(std::min(n_token, n_ubatch_)) - decode_bytes();
}

emoe_context_sizes measure_context(const ModelIndex &index, const std::string &shell_path, const emoe_setup &setup) {
    AssertionGuard const guard;
    std::unique_ptr<MemoryShell> in_memory;
    if (shell_path.empty()) in_memory = std::make_unique<MemoryShell>(index);
    std::string const path = in_memory ? in_memory->path() : shell_path;
    ShellLoad const shell(path, check_shell(index, path, false));
    LogCapture const log;
    uint64_t const before = rss_bytes();
    GpuParts gpu_parts(index, setup.device, setup.n_gpu_layer);
    llama_model_params mp = model_params();
    note_loaded();
    gpu_parts.apply(&mp);
    mp.no_alloc = true;
    mp.load_mode = LLAMA_LOAD_MODE_NONE;
    LlamaModelPtr model(llama_model_load_from_file(path.c_str(), mp));
    if (!model) fail(EMOE_ERR_FORMAT, "llama.cpp refuses the model: %s", log.last_error("no reason given").c_str());
    check_model(model.get());
    if (n_sequence(setup) > 1) check_sequences(model.get(), setup.device != 0);
    LlamaContextPtr ctx(llama_init_from_model(model.get(), context_params(setup)));
    if (!ctx)
        fail(EMOE_ERR_UNSUPPORTED, "llama.cpp cannot make a context of %u tokens: %s", setup.n_ctx,
             log.last_error("no reason given").c_str());
    check_context(ctx.get());
    uint64_t const after = rss_bytes(); // with the graph and the scheduler
    ctx.reset();
    model.reset();
    ContextBuffers const b = parse_buffers(log.text(), gpu_name(setup.device));
    emoe_context_sizes sizes = {};
    sizes.struct_size = sizeof sizes;
    sizes.kv_bytes = b.kv_bytes;
    sizes.compute_bytes = b.compute_bytes;
    sizes.output_bytes = output_bytes(b, index, setup);
    sizes.vocab_bytes = after > before ? after - before : 0;
    WorkSpace const work(index, setup, b.compute_bytes);
    sizes.scratch_bytes = work.scratch_bytes();
    sizes.decode_bytes = work.decode_bytes();
    sizes.prefill_bytes = work.extra_bytes(setup.n_ubatch);
    if (setup.device == 0) return sizes;
    // Tables are looked up on the CPU, the token embedding too; where that is the output matrix as well, the GPU has a
    // second copy.
    bool tied = true;
    uint64_t host = 0, padding = 0;
    size_t const alignment = ggml_backend_buft_get_alignment(ggml_backend_dev_buffer_type(gpu_device(setup.device)));
    auto const pad = [alignment](ggml_type type) { return alignment + ggml_row_size(type, k_row_padding); };
    for (TensorInfo const &t : index.dense) {
        tied = tied && t.name != "output.weight";
        if (t.is_table || t.name.rfind("token_embd", 0) == 0) host += t.bytes;
        padding += pad(t.type);
    }
    for (uint32_t l = 0; l < index.layout.layers.size(); l++)
        for (uint32_t m = 0; gpu_parts.on_gpu(l) && m < index.layout.layers[l].matrices.size(); m++)
            padding += pad(static_cast<ggml_type>(index.layout.layers[l].slice(0, m).type));
    sizes.gpu_dense_bytes = index.dense_bytes - host;
    sizes.gpu_bytes = sizes.gpu_dense_bytes + (tied ? host : 0) + b.gpu_bytes + gpu_parts.expert_bytes() + padding;
    return sizes;
}

} // namespace emoe
