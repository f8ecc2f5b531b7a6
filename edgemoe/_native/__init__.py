"""libedgemoe, called: the only package that touches ctypes, one file a section of native/include/edgemoe.h.

Every function here is one function of the header, with Python types and with exceptions for statuses.
"""

from .budget import Allowance as Allowance
from .budget import Outcome as Outcome
from .budget import budget_bytes as budget_bytes
from .budget import hit_rate as hit_rate
from .budget import margin_bytes as margin_bytes
from .budget import plan_choose as plan_choose
from .budget import plan_make as plan_make
from .budget import plan_predict as plan_predict
from .engine import (
    collect_begin as collect_begin,
)
from .engine import (
    collect_bytes as collect_bytes,
)
from .engine import (
    collect_end as collect_end,
)
from .engine import (
    collect_noise as collect_noise,
)
from .engine import (
    collect_read as collect_read,
)
from .engine import (
    collect_skip as collect_skip,
)
from .engine import (
    collect_skipped as collect_skipped,
)
from .engine import (
    engine_accuracy as engine_accuracy,
)
from .engine import (
    engine_can_cut as engine_can_cut,
)
from .engine import (
    engine_can_verify as engine_can_verify,
)
from .engine import (
    engine_cancel as engine_cancel,
)
from .engine import (
    engine_checkpoint as engine_checkpoint,
)
from .engine import (
    engine_checkpoint_bytes as engine_checkpoint_bytes,
)
from .engine import (
    engine_close as engine_close,
)
from .engine import (
    engine_decode as engine_decode,
)
from .engine import (
    engine_experts as engine_experts,
)
from .engine import (
    engine_inject_fault as engine_inject_fault,
)
from .engine import (
    engine_n_ctx as engine_n_ctx,
)
from .engine import (
    engine_n_past as engine_n_past,
)
from .engine import (
    engine_open as engine_open,
)
from .engine import (
    engine_rates as engine_rates,
)
from .engine import (
    engine_resident as engine_resident,
)
from .engine import (
    engine_rewind as engine_rewind,
)
from .engine import (
    engine_select as engine_select,
)
from .engine import (
    engine_sequence_text as engine_sequence_text,
)
from .engine import (
    engine_set_cache_bytes as engine_set_cache_bytes,
)
from .engine import (
    engine_set_checkpoint as engine_set_checkpoint,
)
from .engine import (
    engine_set_state as engine_set_state,
)
from .engine import (
    engine_state as engine_state,
)
from .engine import (
    engine_state_bytes as engine_state_bytes,
)
from .engine import (
    engine_state_key as engine_state_key,
)
from .engine import (
    engine_stats as engine_stats,
)
from .engine import (
    engine_step as engine_step,
)
from .engine import (
    engine_text as engine_text,
)
from .engine import (
    engine_trace as engine_trace,
)
from .engine import (
    engine_verify as engine_verify,
)
from .engine import (
    engine_warm_start as engine_warm_start,
)
from .engine import (
    expert_list as expert_list,
)
from .engine import (
    gpu_experts_measure as gpu_experts_measure,
)
from .engine import (
    gpu_experts_speed as gpu_experts_speed,
)
from .library import (
    LLAMA_VERSION as LLAMA_VERSION,
)
from .library import (
    AllowanceHandle as AllowanceHandle,
)
from .library import (
    EngineHandle as EngineHandle,
)
from .library import (
    ModelHandle as ModelHandle,
)
from .library import (
    PolicyHandle as PolicyHandle,
)
from .library import (
    SamplerHandle as SamplerHandle,
)
from .library import (
    StreamHandle as StreamHandle,
)
from .library import (
    TextHandle as TextHandle,
)
from .library import (
    build_info as build_info,
)
from .library import (
    build_stamp as build_stamp,
)
from .library import (
    bundled as bundled,
)
from .library import (
    check as check,
)
from .library import (
    ggml_library as ggml_library,
)
from .library import (
    library as library,
)
from .library import (
    llama_package as llama_package,
)
from .library import (
    set_log_level as set_log_level,
)
from .measure import (
    backend_load as backend_load,
)
from .measure import (
    compute_measure as compute_measure,
)
from .measure import (
    devices as devices,
)
from .measure import (
    storage_measure as storage_measure,
)
from .model import (
    context_measure as context_measure,
)
from .model import (
    model_close as model_close,
)
from .model import (
    model_host_info as model_host_info,
)
from .model import (
    model_info as model_info,
)
from .model import (
    model_layer as model_layer,
)
from .model import (
    model_meta as model_meta,
)
from .model import (
    model_open as model_open,
)
from .model import (
    model_recommendation as model_recommendation,
)
from .model import (
    shell_check as shell_check,
)
from .model import (
    shell_find as shell_find,
)
from .model import (
    shell_make as shell_make,
)
from .model import (
    shell_write as shell_write,
)
from .pictures import picture_add as picture_add
from .pictures import picture_decode as picture_decode
from .pictures import picture_forget as picture_forget
from .pictures import picture_tokens as picture_tokens
from .policy import (
    policy_badness as policy_badness,
)
from .policy import (
    policy_close as policy_close,
)
from .policy import (
    policy_open as policy_open,
)
from .policy import (
    policy_rates as policy_rates,
)
from .policy import (
    policy_visit as policy_visit,
)
from .policy import (
    policy_warm_start as policy_warm_start,
)
from .policy import (
    replay as replay,
)
from .quantize import quantize_block as quantize_block
from .system import (
    io_uring_allowed as io_uring_allowed,
)
from .system import (
    map_drop as map_drop,
)
from .system import (
    map_expect as map_expect,
)
from .system import (
    map_fill as map_fill,
)
from .system import (
    memory as memory,
)
from .system import (
    rss_bytes as rss_bytes,
)
from .system import (
    trim_heap as trim_heap,
)
from .text import (
    sampler_close as sampler_close,
)
from .text import (
    sampler_constrain as sampler_constrain,
)
from .text import (
    sampler_open as sampler_open,
)
from .text import (
    sampler_sample as sampler_sample,
)
from .text import (
    stream_close as stream_close,
)
from .text import (
    stream_feed as stream_feed,
)
from .text import (
    stream_finish as stream_finish,
)
from .text import (
    stream_open as stream_open,
)
from .text import (
    stream_stopped as stream_stopped,
)
from .text import (
    text_bos as text_bos,
)
from .text import (
    text_close as text_close,
)
from .text import (
    text_eos as text_eos,
)
from .text import (
    text_fim as text_fim,
)
from .text import (
    text_is_eog as text_is_eog,
)
from .text import (
    text_logits as text_logits,
)
from .text import (
    text_logprobs as text_logprobs,
)
from .text import (
    text_n_vocab as text_n_vocab,
)
from .text import (
    text_open as text_open,
)
from .text import (
    text_piece as text_piece,
)
from .text import (
    text_set_logits as text_set_logits,
)
from .text import (
    text_tokenize as text_tokenize,
)
