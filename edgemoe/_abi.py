"""Mirror of native/include/edgemoe.h: numbers, structs and callbacks, in the header's order.

`_native/signatures.py` has the functions. tests/test_abi.py asks a C compiler whether every size and offset is right.
What the fields mean is said in the header.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_char,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_uint32,
    c_uint64,
    c_void_p,
)

ABI_VERSION = 2

OK = 0
ERR_ARGUMENT = 1
ERR_IO = 2
ERR_FORMAT = 3
ERR_UNSUPPORTED = 4
ERR_MEMORY = 5
ERR_CANCELLED = 6
ERR_CONTEXT = 7
ERR_INTERNAL = 8

BUDGET_BYTES = 0
BUDGET_SHARE = 1
BUDGET_AUTO = 2

POLICY_NEXT_USE = 0
POLICY_LFRU = 1
POLICY_LRU = 2
POLICY_LFU = 3
POLICY_MRS = 4
REPLAY_BELADY = 100

PREFETCH_AUTO = 0
PREFETCH_OFF = 1
PREFETCH_ON = 2

DEVICE_CPU = 0
DEVICE_GPU = 1
DEVICE_IGPU = 2
DEVICE_ACCELERATOR = 3

EXPERT_RESIDENT = 1
EXPERT_USED = 2
EXPERT_MISSED = 4
EXPERT_PREFETCHED = 8
EXPERT_SKIPPED = 16

LEAST_LOSSY = 0.01

MAX_DEPTH = 4
MAX_VERIFY = 7
MAX_SEQUENCE = 7

READER_AUTO = 0
READER_THREADS = 1
READER_URING = 2
READ_DIRECT = 0
READ_BUFFERED = 1
READ_PAGE_CACHE = 2

FINISH_NONE = 0
FINISH_STOP = 1
FINISH_LENGTH = 2

MEMORY_NORMAL = 0
MEMORY_LOW = 1
MEMORY_CRITICAL = 2

FAULT_FAIL = 1
FAULT_SHORT = 2
FAULT_TRUNCATE = 3
FAULT_DELAY = 4
FAULT_INTERRUPT = 5


COLLECT_EXPERTS = 0
COLLECT_IN = 1
COLLECT_HIDDEN = 2
COLLECT_OUTPUT = 3
COLLECT_SAMPLE_X = 4
COLLECT_SAMPLE_W = 5
COLLECT_STATE = 6


class Struct(ctypes.Structure):
    """A parameter struct: `struct_size` is filled in at construction."""

    def __init__(self, **values: object) -> None:
        super().__init__(struct_size=ctypes.sizeof(type(self)), **values)


class Error(ctypes.Structure):
    _fields_ = [("message", c_char * 1024)]


class Setup(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("memory_kind", c_uint32),
        ("memory", c_uint64),
        ("process_bytes", c_uint64),
        ("later_bytes", c_uint64),
        ("n_ctx", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_threads", c_uint32),
        ("n_outputs", c_uint32),
        ("kv_type", c_uint32),
        ("policy", c_uint32),
        ("prefetch", c_uint32),
        ("reader", c_uint32),
        ("buffered", c_uint32),
        ("n_read_lane", c_uint32),
        ("read_bytes_per_s", c_uint64),
        ("device", c_uint32),
        ("n_gpu_layer", c_uint32),
        ("gpu_experts", POINTER(c_uint32)),
        ("n_gpu_expert", c_uint64),
        ("row_cache_bytes", c_uint64),
        ("lossy_nats", c_double),
        ("n_sequence", c_uint32),
        ("reserved", c_uint32),
        ("rope_given", c_uint32),
        ("rope_scaling", c_uint32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("rope_reserved", c_uint32),
        ("profile", c_char_p),
        ("mmproj", c_char_p),
        ("override_kv", POINTER(c_char_p)),
        ("n_override_kv", c_uint64),
    ]


class MemoryInfo(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_core", c_uint32),
        ("total_bytes", c_uint64),
        ("limit_bytes", c_uint64),
        ("available_bytes", c_uint64),
        ("rss_bytes", c_uint64),
        ("peak_bytes", c_uint64),
        ("anon_bytes", c_uint64),
        ("file_bytes", c_uint64),
    ]


class ModelInfo(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_layer", c_uint32),
        ("n_moe_layer", c_uint32),
        ("n_expert", c_uint32),
        ("n_expert_used", c_uint32),
        ("n_ctx_train", c_uint32),
        ("n_embd", c_uint32),
        ("n_vocab", c_uint32),
        ("n_file", c_uint32),
        ("direct_io", c_uint32),
        ("file_bytes", c_uint64),
        ("dense_bytes", c_uint64),
        ("dense_token_bytes", c_uint64),
        ("expert_bytes", c_uint64),
        ("token_bytes", c_uint64),
        ("slot_bytes", c_uint64),
        ("slot_min_bytes", c_uint64),
        ("n_expert_total", c_uint64),
        ("identity", c_uint64),
        ("architecture", c_char * 64),
        ("name", c_char * 192),
        ("table_bytes", c_uint64),
    ]


class Recommendation(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("given", c_uint32),
        ("temp", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("xtc_probability", c_float),
        ("xtc_threshold", c_float),
        ("repeat_penalty", c_float),
        ("mirostat_tau", c_float),
        ("mirostat_eta", c_float),
        ("top_k", c_int32),
        ("repeat_last_n", c_int32),
        ("mirostat", c_uint32),
        ("sequence", c_char * 128),
    ]


class LayerInfo(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("layer", c_uint32),
        ("n_expert", c_uint32),
        ("n_matrix", c_uint32),
        ("expert_bytes", c_uint64),
        ("slot_bytes", c_uint64),
        ("bits_per_weight", c_float),
        ("types", c_char * 96),
    ]


class ContextSizes(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("kv_bytes", c_uint64),
        ("compute_bytes", c_uint64),
        ("output_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("vocab_bytes", c_uint64),
        ("decode_bytes", c_uint64),
        ("prefill_bytes", c_uint64),
        ("gpu_bytes", c_uint64),
        ("gpu_dense_bytes", c_uint64),
    ]


class Plan(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_ctx", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_threads", c_uint32),
        ("budget_bytes", c_uint64),
        ("process_bytes", c_uint64),
        ("dense_bytes", c_uint64),
        ("kv_bytes", c_uint64),
        ("compute_bytes", c_uint64),
        ("output_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("decode_bytes", c_uint64),
        ("prefill_bytes", c_uint64),
        ("margin_bytes", c_uint64),
        ("cache_bytes", c_uint64),
        ("slot_min_bytes", c_uint64),
        ("n_slot", c_uint64),
        ("n_expert_total", c_uint64),
        ("smallest_bytes", c_uint64),
        ("resident_bytes", c_uint64),
        ("fraction", c_double),
        ("gpu_bytes", c_uint64),
        ("table_bytes", c_uint64),
        ("row_cache_bytes", c_uint64),
        ("picture_bytes", c_uint64),
    ]


class Speeds(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("disk_bytes_per_s", c_double),
        ("compute_bytes_per_s", c_double),
        ("hit_rate", c_double),
    ]


class Prediction(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("disk_bound", c_uint32),
        ("low_tok_s", c_double),
        ("high_tok_s", c_double),
        ("low_miss_bytes", c_uint64),
        ("high_miss_bytes", c_uint64),
        ("hit_rate", c_double),
    ]


class Stats(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_slot", c_uint32),
        ("n_slot_used", c_uint32),
        ("direct_io", c_uint32),
        ("n_decode", c_uint64),
        ("n_prefill", c_uint64),
        ("decode_ns", c_uint64),
        ("prefill_ns", c_uint64),
        ("n_hit", c_uint64),
        ("n_miss", c_uint64),
        ("n_evict", c_uint64),
        ("n_read", c_uint64),
        ("read_bytes", c_uint64),
        ("stall_ns", c_uint64),
        ("cache_bytes", c_uint64),
        ("dense_bytes", c_uint64),
        ("kv_bytes", c_uint64),
        ("compute_bytes", c_uint64),
        ("output_bytes", c_uint64),
        ("scratch_bytes", c_uint64),
        ("decode_bytes", c_uint64),
        ("prefill_bytes", c_uint64),
        ("reader", c_uint32),
        ("page_cache", c_uint32),
        ("n_streamed", c_uint64),
        ("n_late", c_uint64),
        ("n_prefetch", c_uint64),
        ("n_prefetch_used", c_uint64),
        ("prefetch_bytes", c_uint64),
        ("drive_ns", c_uint64),
        ("prefetch_paused", c_uint32),
        ("prefetch_depth", c_uint32),
        ("prefetch_threshold", c_float),
        ("reserved2", c_uint32),
        ("with_ns", c_uint64),
        ("without_ns", c_uint64),
        ("n_gpu", c_uint64),
        ("gpu_bytes", c_uint64),
        ("row_cache_bytes", c_uint64),
        ("n_row_hit", c_uint64),
        ("n_row_miss", c_uint64),
        ("row_read_bytes", c_uint64),
        ("untouched_bytes", c_uint64),
        ("n_skip", c_uint64),
        ("skip_bytes", c_uint64),
        ("lossy_nats", c_double),
        ("spent_nats", c_double),
    ]


class Accuracy(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("reserved", c_uint32),
        ("n_used", c_uint64 * MAX_DEPTH),
        ("n_found", c_uint64 * MAX_DEPTH),
    ]


class ReplayParams(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_layer", c_uint32),
        ("n_expert", POINTER(c_uint32)),
        ("n_expert_used", c_uint32),
        ("policy", c_uint32),
        ("per_layer", c_uint32),
        ("n_slot", c_uint32),
        ("n_visit", c_uint64),
        ("layer", POINTER(c_uint32)),
        ("n_token", POINTER(c_uint32)),
        ("n_use", POINTER(c_uint32)),
        ("expert", POINTER(c_uint32)),
        ("n_row", POINTER(c_uint32)),
        ("weight", POINTER(c_float)),
        ("from_visit", c_uint64),
    ]


class SamplerParams(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("seed", c_uint32),
        ("temp", c_float),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repeat_penalty", c_float),
        ("top_k", c_int32),
        ("repeat_last_n", c_int32),
    ]


class Constraint(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("n_bias", c_uint32),
        ("bias_tokens", POINTER(c_int32)),
        ("bias_values", POINTER(c_float)),
        ("presence_penalty", c_float),
        ("frequency_penalty", c_float),
        ("grammar", c_char_p),
        ("grammar_trigger", c_char_p),
        ("typical_p", c_float),
        ("top_n_sigma", c_float),
        ("xtc_probability", c_float),
        ("xtc_threshold", c_float),
        ("dry_multiplier", c_float),
        ("dry_base", c_float),
        ("dry_allowed_length", c_int32),
        ("dry_last_n", c_int32),
        ("n_dry_breaker", c_uint32),
        ("dry_breakers", POINTER(c_char_p)),
        ("mirostat", c_uint32),
        ("mirostat_tau", c_float),
        ("mirostat_eta", c_float),
        ("dynatemp_range", c_float),
        ("dynatemp_exponent", c_float),
        ("ignore_eos", c_uint32),
        ("reserved", c_uint32),
        ("sequence", c_char_p),
    ]


class DeviceInfo(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("kind", c_uint32),
        ("free_bytes", c_uint64),
        ("total_bytes", c_uint64),
        ("backend", c_char * 32),
        ("name", c_char * 64),
        ("description", c_char * 128),
    ]


class StorageSpeed(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("direct_io", c_uint32),
        ("bytes_per_s", c_uint64),
        ("latency_ns", c_uint64),
    ]


class Message(ctypes.Structure):
    _fields_ = [("role", c_char_p), ("content", c_char_p)]


class AnswerParams(Struct):
    _fields_ = [
        ("struct_size", c_uint32),
        ("max_tokens", c_uint32),
        ("stop", POINTER(c_char_p)),
        ("n_stop", c_uint32),
        ("reserved", c_uint32),
        ("sampler", POINTER(SamplerParams)),
    ]


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "emoe_error": Error,
    "emoe_setup": Setup,
    "emoe_memory_info": MemoryInfo,
    "emoe_model_info": ModelInfo,
    "emoe_recommendation": Recommendation,
    "emoe_layer_info": LayerInfo,
    "emoe_context_sizes": ContextSizes,
    "emoe_plan": Plan,
    "emoe_speeds": Speeds,
    "emoe_prediction": Prediction,
    "emoe_stats": Stats,
    "emoe_accuracy": Accuracy,
    "emoe_replay_params": ReplayParams,
    "emoe_sampler_params": SamplerParams,
    "emoe_constraint": Constraint,
    "emoe_device_info": DeviceInfo,
    "emoe_storage_speed": StorageSpeed,
    "emoe_message": Message,
    "emoe_answer_params": AnswerParams,
}

# Functions of ours that the library calls; the first argument is what `user` was.
SizesFunction = CFUNCTYPE(c_int32, c_void_p, c_uint32, c_uint32, POINTER(ContextSizes))
ResizeFunction = CFUNCTYPE(c_int32, c_void_p, c_uint64)
ResidentFunction = CFUNCTYPE(c_uint64, c_void_p)
