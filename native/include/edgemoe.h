/* edgemoe.h - the whole public C interface of libedgemoe.
 *
 * The nouns:
 *   emoe_setup    what is asked for: memory, context, threads, device, ... One struct, taken whole everywhere.
 *   emoe_model    what is in a GGUF file: geometry and where each expert's bytes are. Reads headers only.
 *   emoe_plan     how a memory budget is spent on a model.
 *   emoe_engine   a model opened for generation: dense weights in memory, experts streamed into a fixed cache.
 *   emoe_text     a vocabulary: tokens and text, logits to sample from. An engine has one; it can be alone, too.
 *   emoe_sampler  picks the next token from logits.
 *   emoe_stream   token bytes to text: whole characters, never past a stop text.
 *   emoe_session  all of them under one memory budget, messages in and text out: what an app needs (end of this file).
 * For hosts that run something else than a GGUF under a budget: emoe_plan_choose, emoe_allowance, emoe_policy.
 *
 * Rules that hold everywhere:
 *   - A function that can fail returns emoe_status; on failure it fills *err with one sentence and changes
 *     nothing else. err may be NULL.
 *   - Every parameter struct begins with struct_size = sizeof(struct). Structs grow at the end only: a smaller one (of a
 *     caller built with an older header) is taken, what it lacks is zero; a larger one is refused. Zeros are defaults.
 *   - Sizes are bytes in uint64_t, durations are nanoseconds in uint64_t, counts are uint32_t.
 *   - Strings are UTF-8 and NUL-terminated. Strings passed in are copied.
 *   - An engine, or a session, is used from one thread at a time, except the functions marked "any thread".
 *   - Nothing here reads the environment or touches the network.
 */
#ifndef EDGEMOE_H
#define EDGEMOE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define EMOE_API __declspec(dllexport)
#else
#define EMOE_API __attribute__((visibility("default")))
#endif

#define EMOE_ABI_VERSION 2 /* 2: emoe_setup, emoe_text; structs of other sizes */

typedef int32_t emoe_status;
#define EMOE_OK 0
#define EMOE_ERR_ARGUMENT 1    /* the caller asked for something that makes no sense */
#define EMOE_ERR_IO 2          /* the operating system refused: missing file, read error, full disk */
#define EMOE_ERR_FORMAT 3      /* the file is not what it claims to be: truncated, corrupted, not a GGUF */
#define EMOE_ERR_UNSUPPORTED 4 /* the file is fine, but this library cannot stream it (not a MoE, unknown type) */
#define EMOE_ERR_MEMORY 5      /* does not fit the bytes given */
#define EMOE_ERR_CANCELLED 6   /* emoe_engine_cancel was called */
#define EMOE_ERR_CONTEXT 7     /* no room left in the KV cache */
#define EMOE_ERR_INTERNAL 8    /* a bug here or in llama.cpp */

typedef struct emoe_error {
    char message[1024];
} emoe_error;

typedef struct emoe_model emoe_model;
typedef struct emoe_engine emoe_engine;
typedef struct emoe_text emoe_text;
typedef struct emoe_sampler emoe_sampler;
typedef struct emoe_stream emoe_stream;
typedef struct emoe_allowance emoe_allowance;
typedef struct emoe_session emoe_session;

/* EMOE_ABI_VERSION of the library that was loaded. */
EMOE_API uint32_t emoe_abi_version(void);

/* What this library was compiled against and what it runs on, for reports: "ggml 0.25.3 (0c1e570)".
 * Owned by the library. */
EMOE_API const char *emoe_build_info(void);
/* Changes whenever the library does, for what was measured with it: build info, size and time of its file. Owned by the
 * library. */
EMOE_API const char *emoe_build_stamp(void);

/* Whether this processor has the instructions that the loaded llama.cpp was compiled for; EMOE_ERR_UNSUPPORTED names
 * those that it lacks. Everything that computes asks first; a host may want to know before it offers anything. */
EMOE_API emoe_status emoe_processor_check(emoe_error *err);

/* Which log lines of llama.cpp reach stderr: 0 none, 1 errors, 2 warnings, 3 everything. Any thread. Default 0. */
EMOE_API void emoe_set_log_level(uint32_t level);

/* ------------------------------------------------------------------ setup */

/* What is asked for. Zeros, but for struct_size and memory, are good defaults. */
typedef struct emoe_setup {
    uint32_t struct_size;
    uint32_t memory_kind;        /* EMOE_BUDGET_*: how `memory` is to be read */
    uint64_t memory;             /* of the whole process: bytes, or millionths of what this process may use */
    uint64_t process_bytes;      /* what the process takes without the model, if it will be more than it takes now */
    uint64_t later_bytes;        /* what it will take after loading, out of the cache (a template engine) */
    uint32_t n_ctx;              /* tokens the KV cache holds; 0: 4096, or less where the budget is small */
    uint32_t n_ubatch;           /* most tokens computed at once in prefill; 0: chosen */
    uint32_t n_threads;          /* compute threads; 0: the physical cores */
    uint32_t n_outputs;          /* rows of logits kept per decode call; 0: 1, for generation */
    uint32_t kv_type;            /* ggml_type of the KV cache: 0 or 1 = F16 (exact), 8 = Q8_0 (lossy) */
    uint32_t policy;             /* EMOE_POLICY_* */
    uint32_t prefetch;           /* EMOE_PREFETCH_* */
    uint32_t reader;             /* EMOE_READER_* */
    uint32_t buffered;           /* EMOE_READ_*: how the files are read */
    uint32_t n_read_lane;        /* reads under way at once; 0 = 4 */
    uint64_t read_bytes_per_s;   /* throttle of the reader for experiments; 0 = none */
    uint32_t device;             /* 0: the CPU; else 1 + index of a GPU (emoe_device_get): dense weights and KV cache */
    uint32_t n_gpu_layer;        /* mixture layers whose experts are computed there too, the last ones, at most */
    const uint32_t *gpu_experts; /* experts that the GPU holds and computes beside the CPU, in layers that are not its
                                    own: numbered through all layers, ascending. Only read during the call */
    uint64_t n_gpu_expert;
    /* For emoe_engine_open, as a plan says it: tables stay in the files, and so many bytes are for their rows. 0: tables are
     * in memory. */
    uint64_t row_cache_bytes;
    double lossy_nats; /* LOSSY: in decode, missing experts of small contribution are left out for so many nats a token
                          (KL divergence): EMOE_LEAST_LOSSY or more, 0: never, exact. Needs what `edgemoe calibrate` has
                          learned, in the model's file or in FILE.calibration. On the CPU, without reading ahead in
                          decode; what is left out depends on the budget and on what was computed before */
    uint32_t n_sequence; /* sequences of tokens side by side, each of n_ctx tokens; 0: 1, at most EMOE_MAX_SEQUENCE */
    uint32_t reserved;
    uint32_t rope_given;    /* EMOE_ROPE_*: which of the fields below are given; what is not is the model's. Where any
                                 but yarn_orig_ctx is, n_ctx may be above what the model was trained for */
    uint32_t rope_scaling;  /* 0: none, 1: linear, 2: YaRN; 3: LongRoPE, as llama_rope_scaling_type */
    float rope_freq_base;   /* above 0 */
    float rope_freq_scale;  /* above 0: 1 / the factor by which the context grows */
    float yarn_ext_factor;  /* 0: interpolate fully, 1: extrapolate as YaRN does */
    float yarn_attn_factor; /* scale of attention's magnitude */
    float yarn_beta_fast;   /* rotations above which frequencies stay */
    float yarn_beta_slow;   /* rotations below which they are scaled */
    uint32_t yarn_orig_ctx; /* tokens that the model was trained for before it was scaled */
    uint32_t rope_reserved;
    const char *profile; /* NULL, or a file of `edgemoe calibrate` of text of a task: the cache begins with its uses of
                            experts (not those of emoe_engine_warm_start), and lossy_nats takes its prices. Only read during
                            the call */
    const char *mmproj;  /* a picture encoder's file, for which a plan keeps memory that the cache can lend; NULL: none.
                           Only read during the call */
    const char *const *override_kv; /* for emoe_session_open: see emoe_model_open_with. Only read during the call */
    uint64_t n_override_kv;
} emoe_setup;
#define EMOE_LEAST_LOSSY 0.01
#define EMOE_MAX_SEQUENCE 7
#define EMOE_ROPE_SCALING 1
#define EMOE_ROPE_FREQ_BASE 2
#define EMOE_ROPE_FREQ_SCALE 4
#define EMOE_YARN_EXT_FACTOR 8
#define EMOE_YARN_ATTN_FACTOR 16
#define EMOE_YARN_BETA_FAST 32
#define EMOE_YARN_BETA_SLOW 64
#define EMOE_YARN_ORIG_CTX 128
#define EMOE_BUDGET_BYTES 0
#define EMOE_BUDGET_SHARE 1 /* memory counts millionths of emoe_memory_info.limit_bytes */
#define EMOE_BUDGET_AUTO 2  /* 85 % of what is available now, or less if every expert fits in less */
/* Which expert a full cache gives up. */
#define EMOE_POLICY_NEXT_USE 0 /* the one expected to be needed again last; the default */
#define EMOE_POLICY_LFRU 1     /* the largest age / (1 + uses) */
#define EMOE_POLICY_LRU 2      /* the least recently used */
#define EMOE_POLICY_LFU 3      /* the least often used */
#define EMOE_POLICY_MRS 4      /* the smallest recent router score (HybriMoE) */
/* Whether experts are read before a router asks for them. The output is the same. */
#define EMOE_PREFETCH_AUTO 0 /* where it measures faster */
#define EMOE_PREFETCH_OFF 1
#define EMOE_PREFETCH_ON 2
#define EMOE_READER_AUTO 0    /* io_uring where the kernel allows it, else threads */
#define EMOE_READER_THREADS 1 /* threads that block in pread */
#define EMOE_READER_URING 2   /* io_uring or EMOE_ERR_UNSUPPORTED */
#define EMOE_READ_DIRECT 0    /* past the page cache where the file system allows it, else as EMOE_READ_BUFFERED */
#define EMOE_READ_BUFFERED 1  /* through the page cache, whose pages are dropped behind each read */
/* Through the page cache, which keeps what it likes: memory that nobody uses serves as a second cache, outside the budget.
 * EMOE_ERR_UNSUPPORTED under a kernel limit, into which it would count. */
#define EMOE_READ_PAGE_CACHE 2

/* ------------------------------------------------------------------ machine */

typedef struct emoe_memory_info {
    uint32_t struct_size;
    uint32_t n_core;          /* physical cores that this process may run on */
    uint64_t total_bytes;     /* RAM; 0: not known, as all below */
    uint64_t limit_bytes;     /* what this process may use at most: RAM, its cgroups' limits (v1, v2), its rlimits */
    uint64_t available_bytes; /* what can be had now without swapping, below every limit */
    uint64_t rss_bytes;       /* resident memory of this process now */
    uint64_t peak_bytes;      /* and at most so far */
    uint64_t anon_bytes;      /* of rss: private (heap, weights, cache) */
    uint64_t file_bytes;      /* of rss: mapped files */
} emoe_memory_info;
/* root: NULL, or a folder in which proc/ and sys/ are looked for instead of / (tests). Any thread. */
EMOE_API emoe_status emoe_memory_get(const char *root, emoe_memory_info *info, emoe_error *err);
/* Its rss_bytes alone, without asking about the machine: cheap. Any thread. */
EMOE_API uint64_t emoe_memory_rss(void);
/* Gives freed memory back to the system; glibc keeps it otherwise. Any thread. */
EMOE_API void emoe_memory_trim(void);

/* ------------------------------------------------------------------ model */

/* Reads the headers of a GGUF file (all files of a split set, given any of its names) and indexes its experts.
 * Reads no tensor data. On success *out must be closed with emoe_model_close. Any thread. */
EMOE_API emoe_status emoe_model_open(const char *path, emoe_model **out, emoe_error *err);
/* As emoe_model_open, with metadata that is other than the file says: override_kv are n_override_kv texts
 * "KEY=TYPE:VALUE" as llama.cpp's, TYPE being int, float, bool or str. All that is made of the model heeds them (plan,
 * tokenizer, states, what the cache folder remembers). Keys that say how tensors are laid out are EMOE_ERR_UNSUPPORTED. */
EMOE_API emoe_status emoe_model_open_with(const char *path, const char *const *override_kv, uint64_t n_override_kv,
                                          emoe_model **out, emoe_error *err);
EMOE_API void emoe_model_close(emoe_model *model);

typedef struct emoe_model_info {
    uint32_t struct_size;
    uint32_t n_layer;           /* transformer blocks, dense ones included */
    uint32_t n_moe_layer;       /* blocks with streamed experts; entries of emoe_model_layer */
    uint32_t n_expert;          /* routed experts a MoE layer (the largest) */
    uint32_t n_expert_used;     /* top-k: experts a token uses in a layer (the largest) */
    uint32_t n_ctx_train;       /* context length that the model was trained for, tokens */
    uint32_t n_embd;            /* width of the residual stream */
    uint32_t n_vocab;           /* tokens in the vocabulary */
    uint32_t n_file;            /* files of a split set, 1 for a single file */
    uint32_t direct_io;         /* 1: the file system takes O_DIRECT reads; 0: bounded buffered reads */
    uint64_t file_bytes;        /* all files */
    uint64_t dense_bytes;       /* every tensor that is not a routed expert */
    uint64_t dense_token_bytes; /* dense bytes read to compute one token (tables are not) */
    uint64_t expert_bytes;      /* all routed experts */
    uint64_t token_bytes;       /* expert bytes that one token uses: sum over layers of top-k experts */
    uint64_t slot_bytes;        /* cache bytes to hold every expert, alignment included */
    uint64_t slot_min_bytes;    /* smallest cache that can decode at all */
    uint64_t n_expert_total;    /* experts over all layers */
    uint64_t identity;          /* hash of path, size, mtime and header of every file: changes when the file does */
    char architecture[64];      /* general.architecture */
    char name[192];             /* general.name, or the file's name */
    uint64_t table_bytes;       /* of dense_bytes: tables, which are only looked up by row (embeddings) */
} emoe_model_info;
EMOE_API emoe_status emoe_model_get_info(const emoe_model *model, emoe_model_info *info, emoe_error *err);
/* The same as the host sees it when a GPU has the experts that setup names (device, n_gpu_layer, gpu_experts). */
EMOE_API emoe_status emoe_model_get_host_info(const emoe_model *model, const emoe_setup *setup, emoe_model_info *info,
                                              emoe_error *err);

/* How tokens are picked where nobody says otherwise: what the file's maker recommends (its general.sampling.*), and
 * llama.cpp's own values where the file says nothing, or nothing that makes sense. */
typedef struct emoe_recommendation {
    uint32_t struct_size;
    uint32_t given; /* bit i: the i-th field from here on is the file's */
    float temp;
    float top_p;
    float min_p;
    float xtc_probability;
    float xtc_threshold;
    float repeat_penalty;
    float mirostat_tau;
    float mirostat_eta;
    int32_t top_k;
    int32_t repeat_last_n;
    uint32_t mirostat;
    char sequence[128]; /* of samplers, see emoe_constraint; "": llama.cpp's own */
} emoe_recommendation;
/* model: NULL for llama.cpp's own values. */
EMOE_API emoe_status emoe_model_get_recommendation(const emoe_model *model, emoe_recommendation *recommendation,
                                                   emoe_error *err);

typedef struct emoe_layer_info {
    uint32_t struct_size;
    uint32_t layer; /* block number in the model */
    uint32_t n_expert;
    uint32_t n_matrix;     /* matrices an expert: 3 for gate, up, down; 2 when gate and up are fused, or without gate */
    uint64_t expert_bytes; /* one expert, mean over the layer */
    uint64_t slot_bytes;   /* cache bytes that one expert of this layer occupies */
    float bits_per_weight; /* mean over the layer's experts */
    char types[96];        /* "gate=Q4_K up=Q4_K down=Q6_K+": the most frequent; + when some experts have others */
} emoe_layer_info;
EMOE_API emoe_status emoe_model_get_layer(const emoe_model *model, uint32_t index, emoe_layer_info *info,
                                          emoe_error *err);

/* Copies a metadata value as text ("tokenizer.chat_template", "qwen3moe.expert_count") into buf, cut and
 * NUL-terminated. Returns the full length in bytes without the NUL, or -1 when the key is absent or an array. */
EMOE_API int64_t emoe_model_meta(const emoe_model *model, const char *key, char *buf, uint64_t buf_bytes);

/* Writes the shell: a GGUF with the model's metadata and dense tensors, its expert tensors declared but absent
 * (they lie past the end of the stored data). Written to a temporary name beside path, synced, renamed.
 * with_data = 0 leaves out the dense bytes too: enough for emoe_context_measure, never for emoe_engine_open. */
EMOE_API emoe_status emoe_shell_write(const emoe_model *model, const char *path, uint32_t with_data, emoe_error *err);

/* 0 when path is a shell that emoe_shell_write finished for this model, else a status. Reads the header only. */
EMOE_API emoe_status emoe_shell_check(const emoe_model *model, const char *path, emoe_error *err);

/* The folder of shells, cache_dir/shells, is made if it is missing. Gives the path of the model's shell, NUL-terminated;
 * *whole: 1 when it is there and finished. Where setup needs no file (on Linux without a GPU) the path is empty and
 * *whole 1. EMOE_ERR_ARGUMENT when cap is too small. */
EMOE_API emoe_status emoe_shell_find(const emoe_model *model, const char *cache_dir, const emoe_setup *setup,
                                     char *path, uint64_t cap, uint32_t *whole, emoe_error *err);
/* The same, and writes the shell unless it is there; notes that it was used now. Deletes what a dead process left,
 * shells of models that are gone, and the least recently used of many. */
EMOE_API emoe_status emoe_shell_make(const emoe_model *model, const char *cache_dir, const emoe_setup *setup,
                                     char *path, uint64_t cap, emoe_error *err);

typedef struct emoe_context_sizes {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t kv_bytes;        /* KV cache and recurrent state */
    uint64_t compute_bytes;   /* llama.cpp's compute buffers */
    uint64_t output_bytes;    /* logits kept */
    uint64_t scratch_bytes;   /* quantized activations and work space of kernels, ggml's included */
    uint64_t vocab_bytes;     /* tokenizer and metadata in memory, measured */
    uint64_t decode_bytes;    /* of compute and scratch, what is in use between large batches */
    uint64_t prefill_bytes;   /* the rest of them: taken from the expert cache during a large batch, then given back */
    uint64_t gpu_bytes;       /* on the GPU: dense weights, KV cache, compute buffers and the experts asked for */
    uint64_t gpu_dense_bytes; /* of them dense weights, which then take no host memory */
} emoe_context_sizes;

/* What a context of setup's shape will allocate, asked of llama.cpp itself without allocating it. n_ctx, n_ubatch and
 * n_threads must be given. shell_path: NULL for one in memory. */
EMOE_API emoe_status emoe_context_measure(const emoe_model *model, const char *shell_path, const emoe_setup *setup,
                                          emoe_context_sizes *sizes, emoe_error *err);

/* Bytes that a device takes for experts one by one (gpu_experts of emoe_setup) in batches of up to n_ubatch tokens,
 * and the host for rows on their way. EMOE_ERR_UNSUPPORTED and why, when one of them cannot be there. */
EMOE_API emoe_status emoe_gpu_experts_measure(const emoe_model *model, const uint32_t *experts, uint64_t n,
                                              uint32_t n_ubatch, uint64_t *gpu_bytes, uint64_t *host_bytes,
                                              emoe_error *err);

/* Nanoseconds from giving a token's row to n experts of MoE layer `index` that a GPU holds until their results are here.
 * Loads them for that; EMOE_ERR_UNSUPPORTED as emoe_gpu_experts_measure. */
EMOE_API emoe_status emoe_gpu_experts_speed(const emoe_model *model, uint32_t device, uint32_t index, uint32_t n,
                                            uint64_t *ns, emoe_error *err);

/* ------------------------------------------------------------------ plan */

/* How a memory budget is spent on a model; sizes in bytes. */
typedef struct emoe_plan {
    uint32_t struct_size;
    uint32_t n_ctx;          /* tokens of context, prompt and answers together */
    uint32_t n_ubatch;       /* most tokens computed at once in prefill */
    uint32_t n_threads;      /* compute threads */
    uint64_t budget_bytes;   /* the whole process */
    uint64_t process_bytes;  /* of it: the app, its libraries, the tokenizer */
    uint64_t dense_bytes;    /* dense weights */
    uint64_t kv_bytes;       /* KV cache */
    uint64_t compute_bytes;  /* llama.cpp's compute buffers */
    uint64_t output_bytes;   /* logits kept */
    uint64_t scratch_bytes;  /* working space of the kernels */
    uint64_t decode_bytes;   /* of compute and scratch, what is in use all the time */
    uint64_t prefill_bytes;  /* the rest of them, lent by the expert cache during a large batch */
    uint64_t margin_bytes;   /* left free: page tables, allocator, kernel */
    uint64_t cache_bytes;    /* expert cache */
    uint64_t slot_min_bytes; /* the part of it that cannot be lent */
    uint64_t n_slot;         /* experts that fit in it (estimate) */
    uint64_t n_expert_total; /* experts of the model that no GPU holds */
    uint64_t smallest_bytes; /* the smallest budget that works: set also when EMOE_ERR_MEMORY is returned */
    uint64_t resident_bytes; /* the budget in which every expert is resident and stays: likewise */
    double fraction;         /* of all experts, those that fit: 0 to 1 */
    uint64_t gpu_bytes;      /* on the GPU: dense weights, KV cache, compute buffers and whole layers of experts */
    /* Of tables that stay in the files, and are not in dense_bytes; and for rows of them. 0: all is in memory. */
    uint64_t table_bytes;
    uint64_t row_cache_bytes;
    uint64_t picture_bytes; /* lent by the expert cache while a picture of common size is encoded; 0: no encoder */
} emoe_plan;

/* How emoe_session_open with the same arguments would spend the budget. EMOE_ERR_MEMORY when it is too small:
 * plan->smallest_bytes then says what would do. EMOE_ERR_ARGUMENT when it is more than this process may use, and the
 * model could use it. cache_dir: see emoe_session_open; what contexts take is measured once and remembered there. With
 * a GPU, gpu_experts and n_gpu_layer say what the host need not hold. Any thread. */
EMOE_API emoe_status emoe_plan_make(const emoe_model *model, const char *cache_dir, const emoe_setup *setup,
                                    emoe_plan *plan, emoe_error *err);

/* What a context of (n_ctx, n_ubatch) allocates; sizes->struct_size is set by the caller. */
typedef emoe_status (*emoe_sizes_fn)(void *user, uint32_t n_ctx, uint32_t n_ubatch, emoe_context_sizes *sizes);
/* The same decision for any model, whoever runs it: info and sizes say what it takes. setup->process_bytes is taken as
 * it is. A status of sizes other than EMOE_OK is returned. */
EMOE_API emoe_status emoe_plan_choose(const emoe_model_info *info, emoe_sizes_fn sizes, void *user,
                                      const emoe_setup *setup, emoe_plan *plan, emoe_error *err);

/* Bytes of a budget as it is asked for (memory_kind and memory of emoe_setup) for a model whose every expert fits in
 * resident_bytes. EMOE_ERR_ARGUMENT when that is more than this process may use and the model could use it. */
EMOE_API emoe_status emoe_budget_bytes(uint32_t memory_kind, uint64_t memory, uint64_t resident_bytes, uint64_t *bytes,
                                       emoe_error *err);
/* What is left free of a budget. */
EMOE_API uint64_t emoe_margin_bytes(uint64_t budget_bytes);

typedef struct emoe_speeds {
    uint32_t struct_size;
    uint32_t reserved;
    double disk_bytes_per_s;    /* of random reads of one matrix of an expert */
    double compute_bytes_per_s; /* weight bytes of the decode kernels */
    double hit_rate;            /* measured on this model at this cache in earlier runs; negative: not known */
} emoe_speeds;
typedef struct emoe_prediction {
    uint32_t struct_size;
    uint32_t disk_bound;     /* 1: the drive decides, 0: the processor */
    double low_tok_s;        /* decode, when routing has no locality */
    double high_tok_s;       /* with that of a trained model on text, or as measured */
    uint64_t low_miss_bytes; /* read a token, in either case */
    uint64_t high_miss_bytes;
    double hit_rate; /* expected in the second */
} emoe_prediction;
/* Decode speed of a model of which a fraction (0 to 1) of the experts fits. */
EMOE_API emoe_status emoe_plan_predict(const emoe_model_info *info, double fraction, const emoe_speeds *speeds,
                                       emoe_prediction *prediction, emoe_error *err);
/* Expected hit rate of the default policy on text when a fraction (0 to 1) of the experts fits. */
EMOE_API double emoe_plan_hit_rate(double fraction);

/* ------------------------------------------------------------------ allowance */

/* Keeps a process inside its budget by resizing the expert cache: everything else takes what it takes. For hosts that
 * own the cache; a session has its own. All functions from any thread; a callback may be called by any of them. */
typedef emoe_status (*emoe_resize_fn)(void *user, uint64_t cache_bytes);
typedef uint64_t (*emoe_resident_fn)(void *user);
/* Made when everything but the cache's content is in place; gives the cache what is really left. untouched_bytes: will
 * be resident, but is not yet. resident: NULL for this process. A status of resize other than EMOE_OK is returned.
 * EMOE_ERR_MEMORY: *smallest is the budget that would do (may be NULL, here and below). Close with
 * emoe_allowance_close. */
EMOE_API emoe_status emoe_allowance_open(const emoe_plan *plan, const emoe_model_info *info, uint64_t untouched_bytes,
                                         emoe_resize_fn resize, emoe_resident_fn resident, void *user,
                                         emoe_allowance **out, uint64_t *smallest, emoe_error *err);
EMOE_API void emoe_allowance_close(emoe_allowance *allowance);
/* How the budget is spent now. */
EMOE_API emoe_status emoe_allowance_get_plan(const emoe_allowance *allowance, emoe_plan *plan, emoe_error *err);
/* Divides a new budget. EMOE_ERR_MEMORY, and nothing changed, when it is too small for what is loaded. */
EMOE_API emoe_status emoe_allowance_spend(emoe_allowance *allowance, uint64_t budget_bytes, uint64_t *smallest,
                                          emoe_error *err);
/* Shrinks the cache if the process has grown far into the margin: the host's own data, libraries. */
EMOE_API emoe_status emoe_allowance_check(emoe_allowance *allowance, emoe_error *err);
/* `what` is about to take up to n_bytes: the cache gives way. *before: resident bytes then, for take_back, which gives
 * the cache what was not taken. EMOE_ERR_MEMORY when the cache and half of the margin cannot give that much.
 * take_back with 0 for `before`: what was taken has gone, or cannot be told from what others took meanwhile. */
EMOE_API emoe_status emoe_allowance_give_way(emoe_allowance *allowance, uint64_t n_bytes, const char *what,
                                             uint64_t *before, uint64_t *smallest, emoe_error *err);
EMOE_API emoe_status emoe_allowance_take_back(emoe_allowance *allowance, uint64_t before, uint64_t n_bytes,
                                              emoe_error *err);

/* ------------------------------------------------------------------ engine */

/* Opens the model for generation through its shell. shell_path: with dense data where a GPU is asked for (emoe_shell_make);
 * NULL for one in memory, which does on Linux without a GPU: dense weights are then read from the model's own files.
 * setup: n_ctx, n_ubatch and n_threads must be given (a plan says them), memory is not read. cache_bytes: see emoe_engine_set_cache_bytes; raised to the least that it accepts
 * (emoe_stats says). The model may be closed afterwards. On success *out must be closed with emoe_engine_close. */
EMOE_API emoe_status emoe_engine_open(const emoe_model *model, const char *shell_path, const emoe_setup *setup,
                                      uint64_t cache_bytes, emoe_engine **out, emoe_error *err);
EMOE_API void emoe_engine_close(emoe_engine *engine);

/* Appends n tokens to the sequence and computes them, in pieces of n_ubatch: n = 1 is decode, more is prefill.
 * Logits of the last token are kept, or with want_all != 0 of every token (n <= n_outputs).
 * On failure the sequence is as before the call, except that a recurrent model's is emptied: see emoe_engine_n_past. */
EMOE_API emoe_status emoe_engine_decode(emoe_engine *engine, const int32_t *tokens, uint32_t n, uint32_t want_all,
                                        emoe_error *err);

/* Appends at most EMOE_MAX_VERIFY tokens and computes them in one pass, each rounded as if it were decoded alone: the
 * logits of all of them, row by row, equal those of n calls of emoe_engine_decode. For drafts: what turns out wrong is cut
 * with emoe_engine_rewind. EMOE_ERR_UNSUPPORTED for recurrent models and those with a sliding window; n_outputs must
 * be at least n. In emoe_stats a pass counts as one decoded token. Else as emoe_engine_decode. */
#define EMOE_MAX_VERIFY 7
EMOE_API emoe_status emoe_engine_verify(emoe_engine *engine, const int32_t *tokens, uint32_t n, emoe_error *err);
/* EMOE_ERR_UNSUPPORTED and why, where emoe_engine_verify is. */
EMOE_API emoe_status emoe_engine_can_verify(const emoe_engine *engine, emoe_error *err);

/* Its vocabulary and logits: the engine's, valid as long as it is open. */
EMOE_API emoe_text *emoe_engine_text(const emoe_engine *engine);

/* Several sequences of tokens side by side, numbered from 0: an engine that was opened with n_sequence > 1 has them.
 * Each has a KV cache of n_ctx tokens and logits of its own. EMOE_ERR_UNSUPPORTED when the engine is opened, and when
 * it is planned, with a model that cannot verify drafts: see emoe_engine_verify.
 *
 * The functions that speak of "the sequence" (decode, verify, n_past, rewind, state_*) mean the one selected last,
 * at first sequence 0. */
EMOE_API emoe_status emoe_engine_select(emoe_engine *engine, uint32_t sequence, emoe_error *err);
/* Appends tokens[i] to sequence sequences[i], for n of them, each once, and computes all in one pass: the experts of a
 * layer are read once for all. Each is rounded as if it were decoded alone, so the logits equal those of n calls
 * of emoe_engine_decode. On failure all are as before. n tokens in emoe_stats. */
EMOE_API emoe_status emoe_engine_step(emoe_engine *engine, const uint32_t *sequences, const int32_t *tokens, uint32_t n,
                                      emoe_error *err);
/* The vocabulary, and the logits of what was last computed of one sequence: they stay while others are computed.
 * NULL when there is no such sequence. emoe_engine_text is that of sequence 0. */
EMOE_API emoe_text *emoe_engine_sequence_text(const emoe_engine *engine, uint32_t sequence);

/* Tokens that the context holds. */
EMOE_API uint32_t emoe_engine_n_ctx(const emoe_engine *engine);

/* Tokens in the sequence. */
EMOE_API uint32_t emoe_engine_n_past(const emoe_engine *engine);

/* Cuts the sequence to its first n tokens. A recurrent model can only be cut to 0, and so can one with a sliding window
 * behind a state that was taken up again: the sequence is emptied and EMOE_ERR_UNSUPPORTED. */
EMOE_API emoe_status emoe_engine_rewind(emoe_engine *engine, uint32_t n, emoe_error *err);

/* 1: a state that was taken up again (emoe_engine_state_set) can be cut at any token. 0: it can go on or be emptied, as
 * those of recurrent models and of sliding windows, of which a state has no more than the next token sees. */
EMOE_API uint32_t emoe_engine_can_cut(const emoe_engine *engine);

/* What a state belongs to: the model's file, the setup as far as it matters, this library. One of another key is refused.
 */
EMOE_API uint64_t emoe_engine_state_key(const emoe_engine *engine);
/* The sequence's state (its KV cache), to be kept and taken up again without computing its tokens anew: logits are then
 * what they would have been. Bytes that emoe_engine_state_get would write now; 0 when there are none to write. */
EMOE_API uint64_t emoe_engine_state_bytes(emoe_engine *engine);
/* Writes the state into buf of cap bytes, *n_bytes of them. Between decode calls. */
EMOE_API emoe_status emoe_engine_state_get(emoe_engine *engine, void *buf, uint64_t cap, uint64_t *n_bytes,
                                           emoe_error *err);
/* Makes the sequence what it was when buf was written, by an engine of the same model and setup; bytes that were not, or
 * have changed since, are refused and the sequence is as before. When llama.cpp refuses them the sequence is empty. */
EMOE_API emoe_status emoe_engine_state_set(emoe_engine *engine, const void *buf, uint64_t n_bytes, emoe_error *err);

/* A checkpoint: the part of the sequence's state that cannot be cut (recurrent states, sliding windows), so that the
 * sequence can be cut to as many tokens as it has now. Bytes of it; 0 where emoe_engine_can_cut is 1, and of an empty
 * sequence. */
EMOE_API uint64_t emoe_engine_checkpoint_bytes(emoe_engine *engine);
/* As emoe_engine_state_get. */
EMOE_API emoe_status emoe_engine_checkpoint_get(emoe_engine *engine, void *buf, uint64_t cap, uint64_t *n_bytes,
                                                emoe_error *err);
/* Cuts the sequence to what it was when buf was written. It must begin with those tokens still: that is for the caller
 * to know. A sequence that has fewer is refused, and as before; else as emoe_engine_state_set. */
EMOE_API emoe_status emoe_engine_checkpoint_set(emoe_engine *engine, const void *buf, uint64_t n_bytes,
                                                emoe_error *err);

/* Makes the decode call under way end soon with EMOE_ERR_CANCELLED. Does nothing when none is. Any thread. */
EMOE_API void emoe_engine_cancel(emoe_engine *engine);
/* Forgets a cancel. An engine for which this was ever called keeps a cancel until the next call of this, so that none
 * is lost between two decode calls. */
EMOE_API void emoe_engine_clear_cancel(emoe_engine *engine);

/* Changes the bytes of expert slots, now if idle, else before the next layer. Shrinking gives the memory back to
 * the system. While a batch of many tokens is computed, slots worth its work space (at most prefill_bytes) give way to
 * it. The output does not change. Refuses less than the model's slot_min_bytes + prefill_bytes. Any thread. */
EMOE_API emoe_status emoe_engine_set_cache_bytes(emoe_engine *engine, uint64_t cache_bytes, emoe_error *err);

typedef struct emoe_stats {
    uint32_t struct_size;
    uint32_t n_slot;      /* experts that the cache can hold now */
    uint32_t n_slot_used; /* experts in it */
    uint32_t direct_io;   /* 1 when reads bypass the page cache */
    uint64_t n_decode;    /* tokens computed one at a time */
    uint64_t n_prefill;   /* tokens computed in batches */
    uint64_t decode_ns;
    uint64_t prefill_ns;
    uint64_t n_hit;  /* expert uses (a token's, or a batch's, of an expert in a layer) found in the cache */
    uint64_t n_miss; /* expert uses that had to be read */
    uint64_t n_evict;
    uint64_t n_read; /* reads issued */
    uint64_t read_bytes;
    uint64_t stall_ns;    /* time in which a compute thread slept for a read, mean over threads */
    uint64_t cache_bytes; /* bytes of slots now */
    uint64_t dense_bytes; /* dense weights in anonymous memory */
    uint64_t kv_bytes;
    uint64_t compute_bytes;
    uint64_t output_bytes;
    uint64_t scratch_bytes;
    uint64_t decode_bytes; /* as in emoe_context_sizes */
    uint64_t prefill_bytes;
    uint32_t reader;          /* EMOE_READER_* in force */
    uint32_t page_cache;      /* 1: EMOE_READ_PAGE_CACHE is in force */
    uint64_t n_streamed;      /* expert uses in prefill that passed through without staying (cache too small) */
    uint64_t n_late;          /* hits that were still on their way: read ahead, but not early enough */
    uint64_t n_prefetch;      /* experts read ahead, whole or in part */
    uint64_t n_prefetch_used; /* of them used before they were given up */
    uint64_t prefetch_bytes;  /* of read_bytes: read ahead */
    uint64_t drive_ns;        /* time with a read under way */
    uint32_t prefetch_paused; /* 1: found slower than not reading ahead, and stopped for now */
    uint32_t prefetch_depth;  /* layers looked ahead now */
    float prefetch_threshold; /* least probability of use for which an expert is read ahead now */
    uint32_t reserved2;
    uint64_t with_ns;    /* mean time of the last tokens computed with reading ahead; 0: none */
    uint64_t without_ns; /* and without: the comparison that switches it */
    uint64_t n_gpu;      /* expert uses that a GPU computed beside the CPU: neither hit nor miss */
    uint64_t gpu_bytes;  /* allocated on the GPU: weights, KV cache, compute buffers */
    /* For rows of tables that stay in the files; 0: none does. Rows looked up (those of a batch that are the same once) and
     * found there, or read: bytes that are not in read_bytes. */
    uint64_t row_cache_bytes;
    uint64_t n_row_hit;
    uint64_t n_row_miss;
    uint64_t row_read_bytes;
    /* Of all but the expert cache, what is not resident before text is computed: for an allowance. */
    uint64_t untouched_bytes;
    uint64_t n_skip;     /* lossy: expert uses that were left out: neither hit nor miss */
    uint64_t skip_bytes; /* lossy: not read for that */
    double lossy_nats;   /* of the setup */
    double spent_nats;   /* lossy: what leaving out costs a token, mean over about the last 200, by the calibration */
} emoe_stats;
/* Any thread. */
EMOE_API emoe_status emoe_engine_get_stats(const emoe_engine *engine, emoe_stats *stats, emoe_error *err);

/* Number of cached experts of MoE layer `index` (as in emoe_model_get_layer). Any thread. */
EMOE_API uint32_t emoe_engine_resident(const emoe_engine *engine, uint32_t index);

/* State of each expert of MoE layer `index` in states: EMOE_EXPERT_* bits. Returns their number, 0 when there is no such
 * layer; when it exceeds cap nothing was written. USED, MISSED, PREFETCHED and SKIPPED are of the layer's last visit. Any thread. */
#define EMOE_EXPERT_RESIDENT 1
#define EMOE_EXPERT_USED 2
#define EMOE_EXPERT_MISSED 4
#define EMOE_EXPERT_PREFETCHED 8
#define EMOE_EXPERT_SKIPPED 16
EMOE_API uint32_t emoe_engine_experts(const emoe_engine *engine, uint32_t index, uint8_t *states, uint32_t cap);

#define EMOE_MAX_DEPTH 4
typedef struct emoe_accuracy {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t n_used[EMOE_MAX_DEPTH]; /* experts the layer used in tokens for which it was guessed d + 1 layers before */
    uint64_t n_found[EMOE_MAX_DEPTH]; /* of them among the k likeliest of the guess */
} emoe_accuracy;
/* How well MoE layer `index` has been predicted. Any thread. */
EMOE_API emoe_status emoe_engine_accuracy(const emoe_engine *engine, uint32_t index, emoe_accuracy *accuracy,
                                          emoe_error *err);

/* How often a token uses each expert, all layers in turn: what the cache has learned, for the next run's
 * emoe_engine_warm_start. Returns their number (0: the policy keeps none); when it exceeds cap nothing was written. */
EMOE_API uint64_t emoe_engine_rates(const emoe_engine *engine, float *rates, uint64_t cap);
/* Before the first decode call. Ignored when n is not the model's number of experts. */
EMOE_API void emoe_engine_warm_start(emoe_engine *engine, const float *rates, uint64_t n);

/* Records routing, residency, reads and stalls into a file (docs/trace.md) until called again; path NULL ends it.
 * header: JSON, kept with the file. Between decode calls. A traced run is no benchmark. */
EMOE_API emoe_status emoe_engine_trace(emoe_engine *engine, const char *path, const char *header, emoe_error *err);

/* For tests: the n-th read from now (0 = the next) goes wrong once, or with n = UINT64_MAX no read does.
 * FAIL: EIO. SHORT: half the bytes arrive, the rest when asked again. TRUNCATE: the file ends early. DELAY: 50 ms.
 * INTERRUPT: EINTR. */
#define EMOE_FAULT_FAIL 1
#define EMOE_FAULT_SHORT 2
#define EMOE_FAULT_TRUNCATE 3
#define EMOE_FAULT_DELAY 4
#define EMOE_FAULT_INTERRUPT 5
EMOE_API void emoe_engine_inject_fault(emoe_engine *engine, uint32_t kind, uint64_t n);

/* ------------------------------------------------------------------ pictures */

/* Encodes a picture (the bytes of a JPEG, PNG, GIF or BMP file) with the encoder in the GGUF file mmproj, which is read
 * for it and given back. The expert cache lends what that takes; EMOE_ERR_MEMORY where it cannot. What the model is to see
 * of it stays until emoe_engine_picture_forget, in memory that the cache lends too. *picture is its number, from 1 on.
 * EMOE_ERR_ARGUMENT: these bytes are no picture; EMOE_ERR_FORMAT: the encoder's file is damaged; EMOE_ERR_UNSUPPORTED: it
 * encodes no pictures, or is another model's, or there is no libmtmd beside llama.cpp. Engines of one sequence. */
EMOE_API emoe_status emoe_engine_picture_add(emoe_engine *engine, const char *mmproj, const void *bytes,
                                             uint64_t n_bytes, uint64_t *picture, emoe_error *err);
/* What a picture is in a prompt: tokens of text, and -1 - i for each row of its part i. Writes at most cap of them, and *n
 * is how many there are. */
EMOE_API emoe_status emoe_engine_picture_tokens(const emoe_engine *engine, uint64_t picture, int32_t *tokens,
                                                uint32_t cap, uint32_t *n, emoe_error *err);
/* Computes the rows of a part after what is in the sequence, which grows by as many tokens; no logits. The sequence can be
 * cut before a part and behind it. As emoe_engine_decode otherwise. */
EMOE_API emoe_status emoe_engine_picture_decode(emoe_engine *engine, uint64_t picture, uint32_t part, emoe_error *err);
EMOE_API void emoe_engine_picture_forget(emoe_engine *engine, uint64_t picture);

/* ------------------------------------------------------------------ calibration */

/* Begins to collect what every expert meets and gives while text is computed; an engine that does not collect pays
 * nothing for it. n_sample: tokens a layer whose activations are kept, every sample_stride-th. Needs emoe_collect_bytes
 * of memory beside the cache. Beginning again forgets what was collected. */
EMOE_API uint64_t emoe_collect_bytes(const emoe_engine *engine, uint32_t n_sample);
EMOE_API emoe_status emoe_collect_begin(emoe_engine *engine, uint32_t n_sample, uint32_t sample_stride,
                                        emoe_error *err);
EMOE_API void emoe_collect_end(emoe_engine *engine);

/* Adds noise to what the experts of MoE layer `index` give: each output gets +-share of its root mean square. LOSSY, for
 * measuring how much errors there matter. index UINT32_MAX: no noise. spared: a byte for each of the layer's n experts, 1:
 * it gets none (rare outliers hold a model together, and would hide what the others matter); n 0: all get some. Sums of
 * noise begin at 0. */
EMOE_API emoe_status emoe_collect_noise(emoe_engine *engine, uint32_t index, float share, const uint8_t *spared,
                                        uint64_t n, emoe_error *err);

/* LOSSY, for measuring what it costs: in batches of any size, uses of the experts that `missing` marks are left out when
 * they cost less than limit, a matter of emoe_setup.lossy_nats. cost, missing: of n experts, all layers in turn; copied.
 * cost: nats for a router weight of 1 where the residual stream has a root mean square of 1; infinity: never. n 0, or
 * emoe_collect_end: none are left out any more. Sums begin at 0. */
EMOE_API emoe_status emoe_collect_skip(emoe_engine *engine, const float *cost, const uint8_t *missing, uint64_t n,
                                       double limit, emoe_error *err);
/* Sum of the costs of what was left out since then. */
EMOE_API double emoe_collect_skipped(const emoe_engine *engine);

/* Copies what was collected of MoE layer `index`; n must be the number of values there are. Sums are over the tokens
 * that were routed to the expert. w is what an error of the expert's output counts for the token: the router's weight
 * divided by the root mean square of the residual stream to which it is added. In: what up, gate or gate_up meet;
 * hidden: what down meets; out: what down gives. */
#define EMOE_COLLECT_EXPERTS                                                                                           \
    0                     /* [n_expert][5]: tokens, sum of router weights, sum w^2, sum w^2 |out|^2, largest |out| */
#define EMOE_COLLECT_IN 1 /* [n_expert][n_in]: sum w^2 in^2 */
#define EMOE_COLLECT_HIDDEN 2   /* [n_expert][n_hidden]: sum w^2 hidden^2 */
#define EMOE_COLLECT_OUTPUT 3   /* [n_expert][n_out]: sum out */
#define EMOE_COLLECT_SAMPLE_X 4 /* [n_sample][n_in] */
#define EMOE_COLLECT_SAMPLE_W 5 /* [n_sample][n_expert]: w, 0 where not routed */
#define EMOE_COLLECT_STATE                                                                                             \
    6 /* [5]: samples kept, tokens seen, sum w^2 |noise|^2, router's weights known, residual known (0 or 1) */
EMOE_API emoe_status emoe_collect_read(const emoe_engine *engine, uint32_t index, uint32_t kind, float *out, uint64_t n,
                                       emoe_error *err);

/* ------------------------------------------------------------------ quantizing */

/* Rounds one block (of ggml's type `type`, by its number) of each of n_row rows so that the columns behind can make the
 * errors good: GPTQ with ggml's blocks. weights: [n_row][block], the block's columns as the blocks before have left them;
 * on return what is left to be made good, times factor's rows to be subtracted from the columns behind. factor:
 * [block][block], these columns' part of the upper Cholesky factor of the inverse of the inputs' second moments.
 * importance: [block], for the choice of the scales. out: [n_row][bytes of a block]. Callable from many threads. */
EMOE_API emoe_status emoe_quantize_block(int32_t type, float *weights, const float *factor, const float *importance,
                                         uint64_t n_row, uint8_t *out, emoe_error *err);

/* ------------------------------------------------------------------ text */

/* A vocabulary without a model, where somebody else computes the logits. path: a GGUF, whose tensors are not needed.
 * On success *out must be closed with emoe_text_close. */
EMOE_API emoe_status emoe_text_open(const char *path, emoe_text **out, emoe_error *err);
/* Not for one that an engine has: that does nothing. */
EMOE_API void emoe_text_close(emoe_text *text);
/* The rows that are sampled from now on, [n_row][n_vocab]: not copied, so they must stay until the next call.
 * EMOE_ERR_ARGUMENT for the vocabulary of an engine, which has its own logits. */
EMOE_API emoe_status emoe_text_set_logits(emoe_text *text, const float *logits, uint32_t n_row, emoe_error *err);
/* Row i of the logits: n_vocab floats, valid until the next decode call. NULL when there is no such row. */
EMOE_API const float *emoe_text_logits(const emoe_text *text, uint32_t i);

/* Tokens of text. Returns their number; when it exceeds cap nothing useful was written and the caller comes back
 * with more room. -1: the tokenizer failed. add_special: BOS where the model wants one. parse_special: "<|im_end|>" is
 * one token. */
EMOE_API int64_t emoe_text_tokenize(const emoe_text *text, const char *bytes, uint64_t n_bytes, uint32_t add_special,
                                    uint32_t parse_special, int32_t *tokens, uint64_t cap);
/* Bytes of one token (may be part of a UTF-8 character). Returns their number, also when it exceeds cap.
 * special: also the text of control tokens. */
EMOE_API int64_t emoe_text_piece(const emoe_text *text, int32_t token, uint32_t special, char *buf, uint64_t cap);
/* 1 when the token ends an answer. */
EMOE_API uint32_t emoe_text_is_eog(const emoe_text *text, int32_t token);
/* -1 when the model has none. */
EMOE_API int32_t emoe_text_bos(const emoe_text *text);
EMOE_API int32_t emoe_text_eos(const emoe_text *text);
EMOE_API uint32_t emoe_text_n_vocab(const emoe_text *text);
/* Marks for filling in the middle of a text: before what comes first, before what comes last, before what is to be written,
 * before the name of a repository, before the name of a file. -1 when the model has none. */
#define EMOE_FIM_PREFIX 0
#define EMOE_FIM_SUFFIX 1
#define EMOE_FIM_MIDDLE 2
#define EMOE_FIM_REPOSITORY 3
#define EMOE_FIM_FILE 4
EMOE_API int32_t emoe_text_fim(const emoe_text *text, uint32_t mark);

/* ------------------------------------------------------------------ sampling */

typedef struct emoe_sampler_params {
    uint32_t struct_size;
    uint32_t seed;
    float temp;            /* 0: greedy, the rest is ignored */
    float top_p;           /* 0 or 1: off */
    float min_p;           /* 0: off */
    float repeat_penalty;  /* 0 or 1: off */
    int32_t top_k;         /* 0: off */
    int32_t repeat_last_n; /* tokens looked back on by repeat_penalty */
} emoe_sampler_params;
EMOE_API emoe_status emoe_sampler_open(const emoe_sampler_params *params, emoe_sampler **out, emoe_error *err);
EMOE_API void emoe_sampler_close(emoe_sampler *sampler);
/* Picks a token from logits row i of the last decode call and remembers it. -1 when there is no such row, -2 when a
 * grammar allows no token at all (see emoe_sampler_constrain). */
EMOE_API int32_t emoe_sampler_sample(emoe_sampler *sampler, const emoe_text *text, uint32_t i);

/* ------------------------------------------------------------------ constraints and log-probabilities */

typedef struct emoe_constraint {
    uint32_t struct_size;
    uint32_t n_bias;
    const int32_t *bias_tokens; /* n_bias tokens, to whose logits bias_values are added; -INFINITY forbids one */
    const float *bias_values;
    float presence_penalty;  /* taken off the logit of each token among the last repeat_last_n picked; 0: off */
    float frequency_penalty; /* the same, for each time it is among them */
    const char *grammar;     /* GBNF: what is picked follows its rule `root`, then an end of answer; NULL, "": none */
    const char *grammar_trigger; /* the grammar holds from where this text was first written; NULL: from the start */
    float typical_p;             /* 0 or 1: off */
    float top_n_sigma;           /* 0: off */
    float xtc_probability;       /* 0: off */
    float xtc_threshold;
    float dry_multiplier; /* 0: off */
    float dry_base;
    int32_t dry_allowed_length;
    int32_t dry_last_n; /* tokens looked back on; -1: all */
    uint32_t n_dry_breaker;
    const char *const *dry_breakers; /* n_dry_breaker texts over which no repetition goes; NULL: llama.cpp's own */
    uint32_t mirostat;               /* 0: off; 1 or 2 in place of all but the temperature */
    float mirostat_tau;
    float mirostat_eta;
    float dynatemp_range; /* the temperature moves by up to that with the entropy; 0: it does not */
    float dynatemp_exponent;
    uint32_t ignore_eos; /* 1: tokens that end an answer are never picked */
    uint32_t reserved;
    const char *sequence; /* samplers in the order in which they act, "top_k;temperature", others off; NULL or "": all,
                             in llama.cpp's own order. The names are llama.cpp's; those that are none are left out */
} emoe_constraint;

/* For a sampler that has picked nothing yet. EMOE_ERR_ARGUMENT for a grammar that llama.cpp does not take. */
EMOE_API emoe_status emoe_sampler_constrain(emoe_sampler *sampler, const emoe_text *text,
                                            const emoe_constraint *constraint, emoe_error *err);

/* Natural log-probabilities of the model itself (temperature 1, no filter) in logits row i of the last decode call: of
 * `token` in *logprob, and of the n_top likeliest tokens, likeliest first (arrays of n_top; NULL when 0). */
EMOE_API emoe_status emoe_text_logprobs(const emoe_text *text, uint32_t i, int32_t token, float *logprob,
                                        uint32_t n_top, int32_t *top_tokens, float *top_logprobs, emoe_error *err);

/* ------------------------------------------------------------------ stream */

/* Bytes of tokens in, valid UTF-8 out: whole characters only (U+FFFD for what is none), and never a part of a stop
 * text. stop: n_stop texts that end the answer and are not part of it; copied. Not for several threads at once. */
EMOE_API emoe_status emoe_stream_open(const char *const *stop, const uint64_t *stop_bytes, uint32_t n_stop,
                                      emoe_stream **out, emoe_error *err);
EMOE_API void emoe_stream_close(emoe_stream *stream);
/* The text that is certain after one more piece, *text_bytes long (0: none), valid until the next call. */
EMOE_API emoe_status emoe_stream_feed(emoe_stream *stream, const char *bytes, uint64_t n_bytes, const char **text,
                                      uint64_t *text_bytes, emoe_error *err);
/* What was held back. */
EMOE_API emoe_status emoe_stream_finish(emoe_stream *stream, const char **text, uint64_t *text_bytes, emoe_error *err);
/* 1: a stop text was found; what came before it has been returned, it and what follows are dropped. */
EMOE_API uint32_t emoe_stream_stopped(const emoe_stream *stream);

/* ------------------------------------------------------------------ eviction policies */

/* For hosts that hold experts themselves: the policies that the cache uses. Not for several threads at once. */
typedef struct emoe_policy emoe_policy;
/* kind: EMOE_POLICY_*. n_expert: [n_layer] experts of each layer. */
EMOE_API emoe_status emoe_policy_open(uint32_t kind, const uint32_t *n_expert, uint32_t n_layer, uint32_t n_expert_used,
                                      emoe_policy **out, emoe_error *err);
EMOE_API void emoe_policy_close(emoe_policy *policy);
/* A batch passed a layer and used n_use of its experts. n_row: tokens routed to each; weight: their mean router weight. */
EMOE_API emoe_status emoe_policy_visit(emoe_policy *policy, uint32_t layer, uint32_t n_token, const uint32_t *experts,
                                       const uint32_t *n_row, const float *weight, uint32_t n_use, emoe_error *err);
/* Of every expert, layer after layer: the larger, the sooner to be given up. n: experts of all layers. */
EMOE_API emoe_status emoe_policy_badness(const emoe_policy *policy, float *badness, uint64_t n, emoe_error *err);
/* As emoe_engine_rates and emoe_engine_warm_start. */
EMOE_API uint64_t emoe_policy_rates(const emoe_policy *policy, float *rates, uint64_t cap);
EMOE_API void emoe_policy_warm_start(emoe_policy *policy, const float *rates, uint64_t n);

/* ------------------------------------------------------------------ replay */

typedef struct emoe_replay_params {
    uint32_t struct_size;
    uint32_t n_layer;
    const uint32_t *n_expert; /* [n_layer] */
    uint32_t n_expert_used;
    uint32_t policy;         /* EMOE_POLICY_*, or EMOE_REPLAY_BELADY: evict what is used again last */
    uint32_t per_layer;      /* 1: each layer has n_slot / n_layer slots of its own */
    uint32_t n_slot;         /* experts that fit, all taken to be of one size */
    uint64_t n_visit;        /* in the order in which they were made */
    const uint32_t *layer;   /* [n_visit] */
    const uint32_t *n_token; /* [n_visit] */
    const uint32_t *n_use;   /* [n_visit] */
    const uint32_t *expert;  /* [sum of n_use]: number in its layer */
    const uint32_t *n_row;   /* [sum of n_use]: tokens routed to it */
    const float *weight;     /* [sum of n_use]: its router weight */
    uint64_t from_visit;     /* visits before this one fill the cache and are not counted */
} emoe_replay_params;
#define EMOE_REPLAY_BELADY 100
/* What a cache would have had of recorded routing. */
EMOE_API emoe_status emoe_replay(const emoe_replay_params *params, uint64_t *n_use, uint64_t *n_miss, emoe_error *err);

/* ------------------------------------------------------------------ devices */

#define EMOE_DEVICE_CPU 0
#define EMOE_DEVICE_GPU 1         /* with memory of its own */
#define EMOE_DEVICE_IGPU 2        /* in the system's memory */
#define EMOE_DEVICE_ACCELERATOR 3 /* beside the CPU, in its memory (BLAS, AMX) */
typedef struct emoe_device_info {
    uint32_t struct_size;
    uint32_t kind;       /* EMOE_DEVICE_* */
    uint64_t free_bytes; /* of its memory now; 0: not known */
    uint64_t total_bytes;
    char backend[32];      /* "CUDA", "Vulkan", "Metal", "CPU" */
    char name[64];         /* "CUDA0" */
    char description[128]; /* what it calls itself */
} emoe_device_info;
/* Devices that this process's ggml was built for and finds. Asking a GPU's driver takes time and memory the first time. */
EMOE_API uint32_t emoe_device_count(void);
EMOE_API emoe_status emoe_device_get(uint32_t i, emoe_device_info *info, emoe_error *err);
/* Registers a ggml backend that was built as a library of its own, of the very version of ggml that is loaded. */
EMOE_API emoe_status emoe_backend_load(const char *path, emoe_error *err);

/* ------------------------------------------------------------------ measuring */

typedef struct emoe_storage_speed {
    uint32_t struct_size;
    uint32_t direct_io;
    uint64_t bytes_per_s; /* random reads of block_bytes with n_lane under way, through the engine's own reader */
    uint64_t latency_ns;  /* median of one such read */
} emoe_storage_speed;
/* Reads at most max_bytes or for max_ns, whichever ends first. */
EMOE_API emoe_status emoe_storage_measure(const char *path, uint64_t block_bytes, uint32_t n_lane, uint64_t max_bytes,
                                          uint64_t max_ns, emoe_storage_speed *speed, emoe_error *err);

/* Weight bytes a second of the row kernel for a ggml type ("Q4_K") on n_threads, over a matrix larger than caches. */
EMOE_API emoe_status emoe_compute_measure(const char *type, uint32_t n_threads, uint64_t max_ns, uint64_t *bytes_per_s,
                                          emoe_error *err);

/* ------------------------------------------------------------------ session: what an app needs */

/* Opens a model inside a budget. cache_dir: a folder of the app's for derived data, made if it is missing; notes on
 * what contexts take; with a GPU, and outside Linux, also a copy of the dense weights, written once a model. Whatever is
 * deleted from it is made anew. plan: how the budget is spent, filled as by emoe_plan_make; may be NULL.
 * On success *out must be closed with emoe_session_close. */
EMOE_API emoe_status emoe_session_open(const char *path, const char *cache_dir, const emoe_setup *setup,
                                       emoe_session **out, emoe_plan *plan, emoe_error *err);
/* Ends what another thread computes, waits for it, gives everything back. */
EMOE_API void emoe_session_close(emoe_session *session);

typedef struct emoe_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* text */
} emoe_message;

/* Zeros, but for struct_size, are good defaults. */
typedef struct emoe_answer_params {
    uint32_t struct_size;
    uint32_t max_tokens;     /* 0: until the model ends or the context is full */
    const char *const *stop; /* texts that end the answer and are not part of it; copied */
    uint32_t n_stop;
    uint32_t reserved;
    const emoe_sampler_params *sampler; /* NULL: greedy */
} emoe_answer_params;

/* The prompt text of messages in buf, cut and NUL-terminated; *n_bytes: its full length without the NUL.
 * chat_template: the Jinja text of a file, or the name of a template that llama.cpp knows ("chatml", "llama3").
 * llama.cpp recognises a template by its markup and writes that markup; the template's own program is not run, so a
 * system message that it would add by itself is not there: give one. EMOE_ERR_UNSUPPORTED: not recognised. */
EMOE_API emoe_status emoe_chat_render(const char *chat_template, const emoe_message *messages, uint32_t n_message,
                                      char *buf, uint64_t cap, uint64_t *n_bytes, emoe_error *err);

/* Begins an answer to messages: computes the prompt, as far as the last one does not begin alike. chat_template:
 * NULL for the model's own, else as in emoe_chat_render. EMOE_ERR_UNSUPPORTED when the model has none, or one that is
 * not recognised: nothing is guessed, the caller may ask for "chatml". An answer under way ends. */
EMOE_API emoe_status emoe_session_chat(emoe_session *session, const emoe_message *messages, uint32_t n_message,
                                       const char *chat_template, const emoe_answer_params *params, emoe_error *err);
/* The same for plain text, which is continued. */
EMOE_API emoe_status emoe_session_prompt(emoe_session *session, const char *text, uint64_t text_bytes,
                                         const emoe_answer_params *params, emoe_error *err);

/* Computes until there is more text, whole UTF-8 characters, and points *text at it: NUL-terminated, *text_bytes
 * long, the session's, valid until the next call. NULL when the answer has ended, here or with an error before. */
EMOE_API emoe_status emoe_session_next(emoe_session *session, const char **text, uint64_t *text_bytes, emoe_error *err);

#define EMOE_FINISH_NONE 0   /* it did not end: it is under way, or was cancelled, or failed */
#define EMOE_FINISH_STOP 1   /* the model or a stop text ended it */
#define EMOE_FINISH_LENGTH 2 /* max_tokens, or the context is full */
/* Why the last answer ended, EMOE_FINISH_*. */
EMOE_API uint32_t emoe_session_finish(const emoe_session *session);

/* The tokens computed so far, prompt and answer, in tokens. Returns their number; when it exceeds cap nothing was
 * written. */
EMOE_API uint64_t emoe_session_tokens(const emoe_session *session, int32_t *tokens, uint64_t cap);

/* Ends the answer under way: the call that computes it, or the next one, returns EMOE_ERR_CANCELLED. Any thread, but
 * no signal handler. */
EMOE_API void emoe_session_cancel(emoe_session *session);

/* Changes the budget, also while an answer is computed, which stays the same. EMOE_ERR_MEMORY, and nothing changed,
 * when it is too small for what is loaded. Any thread. */
EMOE_API emoe_status emoe_session_set_budget(emoe_session *session, uint64_t budget_bytes, emoe_error *err);

#define EMOE_MEMORY_NORMAL 0   /* the system has memory again: the cache has what the budget allows */
#define EMOE_MEMORY_LOW 1      /* half of what the cache can give */
#define EMOE_MEMORY_CRITICAL 2 /* all of it: the smallest cache that works */
/* What a system's memory warning maps to. The budget stays what it was, and what the cache gave up comes back with
 * EMOE_MEMORY_NORMAL. Answers do not change, they become slower. Any thread. */
EMOE_API emoe_status emoe_session_memory_warning(emoe_session *session, uint32_t level, emoe_error *err);

/* How the budget is spent now. Any thread. */
EMOE_API emoe_status emoe_session_get_plan(const emoe_session *session, emoe_plan *plan, emoe_error *err);

/* The session's engine, for emoe_engine_get_stats, emoe_engine_resident and the functions on text. What computes, cuts
 * or resizes it is the session's to call. */
EMOE_API emoe_engine *emoe_session_engine(const emoe_session *session);

#ifdef __cplusplus
}
#endif
#endif
