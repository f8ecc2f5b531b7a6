"""Mirror of native/include/edgemoe.h: structs and function signatures, in the header's order.

tests/test_abi.py asks a C compiler whether every size and offset is right. What the fields mean is said in the header.
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
    c_int64,
    c_uint8,
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

MAX_DEPTH = 4
MAX_VERIFY = 7

READER_AUTO = 0
READER_THREADS = 1
READER_URING = 2

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
        ("reserved", c_uint32),
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

_status = c_int32
_err = POINTER(Error)
_model = _engine = _text = _sampler = _stream = _allowance = _session = _policy = c_void_p
_out = POINTER(c_void_p)
_setup = POINTER(Setup)
_bytes = POINTER(c_uint64)

# Functions of ours that the library calls; the first argument is what `user` was.
SizesFunction = CFUNCTYPE(_status, c_void_p, c_uint32, c_uint32, POINTER(ContextSizes))
ResizeFunction = CFUNCTYPE(_status, c_void_p, c_uint64)
ResidentFunction = CFUNCTYPE(c_uint64, c_void_p)

FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "emoe_abi_version": (c_uint32, []),
    "emoe_build_info": (c_char_p, []),
    "emoe_build_stamp": (c_char_p, []),
    "emoe_processor_check": (_status, [_err]),
    "emoe_set_log_level": (None, [c_uint32]),
    "emoe_memory_get": (_status, [c_char_p, POINTER(MemoryInfo), _err]),
    "emoe_memory_rss": (c_uint64, []),
    "emoe_memory_trim": (None, []),
    "emoe_model_open": (_status, [c_char_p, _out, _err]),
    "emoe_model_close": (None, [_model]),
    "emoe_model_get_info": (_status, [_model, POINTER(ModelInfo), _err]),
    "emoe_model_get_host_info": (_status, [_model, _setup, POINTER(ModelInfo), _err]),
    "emoe_model_get_recommendation": (_status, [_model, POINTER(Recommendation), _err]),
    "emoe_model_get_layer": (_status, [_model, c_uint32, POINTER(LayerInfo), _err]),
    "emoe_model_meta": (c_int64, [_model, c_char_p, c_char_p, c_uint64]),
    "emoe_shell_write": (_status, [_model, c_char_p, c_uint32, _err]),
    "emoe_shell_check": (_status, [_model, c_char_p, _err]),
    "emoe_shell_find": (_status, [_model, c_char_p, _setup, c_char_p, c_uint64, POINTER(c_uint32), _err]),
    "emoe_shell_make": (_status, [_model, c_char_p, _setup, c_char_p, c_uint64, _err]),
    "emoe_context_measure": (_status, [_model, c_char_p, _setup, POINTER(ContextSizes), _err]),
    "emoe_gpu_experts_measure": (
        _status,
        [_model, POINTER(c_uint32), c_uint64, c_uint32, POINTER(c_uint64), POINTER(c_uint64), _err],
    ),
    "emoe_gpu_experts_speed": (_status, [_model, c_uint32, c_uint32, c_uint32, POINTER(c_uint64), _err]),
    "emoe_plan_make": (_status, [_model, c_char_p, _setup, POINTER(Plan), _err]),
    "emoe_plan_choose": (_status, [POINTER(ModelInfo), SizesFunction, c_void_p, _setup, POINTER(Plan), _err]),
    "emoe_budget_bytes": (_status, [c_uint32, c_uint64, c_uint64, _bytes, _err]),
    "emoe_margin_bytes": (c_uint64, [c_uint64]),
    "emoe_plan_predict": (_status, [POINTER(ModelInfo), c_double, POINTER(Speeds), POINTER(Prediction), _err]),
    "emoe_plan_hit_rate": (c_double, [c_double]),
    "emoe_allowance_open": (
        _status,
        [POINTER(Plan), POINTER(ModelInfo), c_uint64, ResizeFunction, ResidentFunction, c_void_p, _out, _bytes, _err],
    ),
    "emoe_allowance_close": (None, [_allowance]),
    "emoe_allowance_get_plan": (_status, [_allowance, POINTER(Plan), _err]),
    "emoe_allowance_spend": (_status, [_allowance, c_uint64, _bytes, _err]),
    "emoe_allowance_check": (_status, [_allowance, _err]),
    "emoe_allowance_give_way": (_status, [_allowance, c_uint64, c_char_p, _bytes, _bytes, _err]),
    "emoe_allowance_take_back": (_status, [_allowance, c_uint64, c_uint64, _err]),
    "emoe_engine_open": (_status, [_model, c_char_p, _setup, c_uint64, _out, _err]),
    "emoe_engine_close": (None, [_engine]),
    "emoe_engine_decode": (_status, [_engine, POINTER(c_int32), c_uint32, c_uint32, _err]),
    "emoe_engine_verify": (_status, [_engine, POINTER(c_int32), c_uint32, _err]),
    "emoe_engine_can_verify": (_status, [_engine, _err]),
    "emoe_engine_text": (_text, [_engine]),
    "emoe_engine_n_ctx": (c_uint32, [_engine]),
    "emoe_engine_n_past": (c_uint32, [_engine]),
    "emoe_engine_rewind": (_status, [_engine, c_uint32, _err]),
    "emoe_engine_can_cut": (c_uint32, [_engine]),
    "emoe_engine_state_key": (c_uint64, [_engine]),
    "emoe_engine_state_bytes": (c_uint64, [_engine]),
    "emoe_engine_state_get": (_status, [_engine, c_void_p, c_uint64, POINTER(c_uint64), _err]),
    "emoe_engine_state_set": (_status, [_engine, c_void_p, c_uint64, _err]),
    "emoe_engine_cancel": (None, [_engine]),
    "emoe_engine_set_cache_bytes": (_status, [_engine, c_uint64, _err]),
    "emoe_engine_get_stats": (_status, [_engine, POINTER(Stats), _err]),
    "emoe_engine_resident": (c_uint32, [_engine, c_uint32]),
    "emoe_engine_experts": (c_uint32, [_engine, c_uint32, POINTER(c_uint8), c_uint32]),
    "emoe_engine_accuracy": (_status, [_engine, c_uint32, POINTER(Accuracy), _err]),
    "emoe_engine_rates": (c_uint64, [_engine, POINTER(c_float), c_uint64]),
    "emoe_engine_warm_start": (None, [_engine, POINTER(c_float), c_uint64]),
    "emoe_engine_trace": (_status, [_engine, c_char_p, c_char_p, _err]),
    "emoe_replay": (_status, [POINTER(ReplayParams), POINTER(c_uint64), POINTER(c_uint64), _err]),
    "emoe_engine_inject_fault": (None, [_engine, c_uint32, c_uint64]),
    "emoe_collect_bytes": (c_uint64, [_engine, c_uint32]),
    "emoe_collect_begin": (_status, [_engine, c_uint32, c_uint32, _err]),
    "emoe_collect_end": (None, [_engine]),
    "emoe_collect_noise": (_status, [_engine, c_uint32, c_float, c_float, _err]),
    "emoe_collect_read": (_status, [_engine, c_uint32, c_uint32, POINTER(c_float), c_uint64, _err]),
    "emoe_text_open": (_status, [c_char_p, _out, _err]),
    "emoe_text_close": (None, [_text]),
    "emoe_text_set_logits": (_status, [_text, POINTER(c_float), c_uint32, _err]),
    "emoe_text_logits": (POINTER(c_float), [_text, c_uint32]),
    "emoe_text_tokenize": (
        c_int64,
        [_text, c_char_p, c_uint64, c_uint32, c_uint32, POINTER(c_int32), c_uint64],
    ),
    "emoe_text_piece": (c_int64, [_text, c_int32, c_uint32, c_char_p, c_uint64]),
    "emoe_text_is_eog": (c_uint32, [_text, c_int32]),
    "emoe_text_bos": (c_int32, [_text]),
    "emoe_text_eos": (c_int32, [_text]),
    "emoe_text_fim": (c_int32, [_text, c_uint32]),
    "emoe_text_n_vocab": (c_uint32, [_text]),
    "emoe_sampler_open": (_status, [POINTER(SamplerParams), _out, _err]),
    "emoe_sampler_close": (None, [_sampler]),
    "emoe_sampler_sample": (c_int32, [_sampler, _text, c_uint32]),
    "emoe_sampler_constrain": (_status, [_sampler, _text, POINTER(Constraint), _err]),
    "emoe_text_logprobs": (
        _status,
        [_text, c_uint32, c_int32, POINTER(c_float), c_uint32, POINTER(c_int32), POINTER(c_float), _err],
    ),
    "emoe_stream_open": (_status, [POINTER(c_char_p), POINTER(c_uint64), c_uint32, _out, _err]),
    "emoe_stream_close": (None, [_stream]),
    "emoe_stream_feed": (_status, [_stream, c_char_p, c_uint64, POINTER(c_char_p), _bytes, _err]),
    "emoe_stream_finish": (_status, [_stream, POINTER(c_char_p), _bytes, _err]),
    "emoe_stream_stopped": (c_uint32, [_stream]),
    "emoe_device_count": (c_uint32, []),
    "emoe_device_get": (_status, [c_uint32, POINTER(DeviceInfo), _err]),
    "emoe_backend_load": (_status, [c_char_p, _err]),
    "emoe_policy_open": (_status, [c_uint32, POINTER(c_uint32), c_uint32, c_uint32, _out, _err]),
    "emoe_policy_close": (None, [_policy]),
    "emoe_policy_visit": (
        _status,
        [_policy, c_uint32, c_uint32, POINTER(c_uint32), POINTER(c_uint32), POINTER(c_float), c_uint32, _err],
    ),
    "emoe_policy_badness": (_status, [_policy, POINTER(c_float), c_uint64, _err]),
    "emoe_policy_rates": (c_uint64, [_policy, POINTER(c_float), c_uint64]),
    "emoe_policy_warm_start": (None, [_policy, POINTER(c_float), c_uint64]),
    "emoe_storage_measure": (
        _status,
        [c_char_p, c_uint64, c_uint32, c_uint64, c_uint64, POINTER(StorageSpeed), _err],
    ),
    "emoe_compute_measure": (_status, [c_char_p, c_uint32, c_uint64, POINTER(c_uint64), _err]),
    "emoe_session_open": (_status, [c_char_p, c_char_p, _setup, _out, POINTER(Plan), _err]),
    "emoe_session_close": (None, [_session]),
    "emoe_chat_render": (
        _status,
        [c_char_p, POINTER(Message), c_uint32, c_char_p, c_uint64, POINTER(c_uint64), _err],
    ),
    "emoe_session_chat": (
        _status,
        [_session, POINTER(Message), c_uint32, c_char_p, POINTER(AnswerParams), _err],
    ),
    "emoe_session_prompt": (_status, [_session, c_char_p, c_uint64, POINTER(AnswerParams), _err]),
    "emoe_session_next": (_status, [_session, POINTER(c_char_p), POINTER(c_uint64), _err]),
    "emoe_session_finish": (c_uint32, [_session]),
    "emoe_session_tokens": (c_uint64, [_session, POINTER(c_int32), c_uint64]),
    "emoe_session_cancel": (None, [_session]),
    "emoe_session_set_budget": (_status, [_session, c_uint64, _err]),
    "emoe_session_memory_warning": (_status, [_session, c_uint32, _err]),
    "emoe_session_get_plan": (_status, [_session, POINTER(Plan), _err]),
    "emoe_session_engine": (_engine, [_session]),
    "emoe_engine_clear_cancel": (None, [_engine]),
}
