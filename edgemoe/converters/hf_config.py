"""config.json to GGUF metadata, for each architecture that is known; what llama.cpp would compute otherwise is refused.

llama.cpp fixes some things an architecture may vary (whether expert weights are normalized, for one). A checkpoint that
wants it the other way is an error here, never a model that silently says something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError, UnsupportedError
from .gguf_header import FLOAT32, Value, encode

Config = Mapping[str, Any]
MAX_LAYERS = 512  # llama.cpp's own bound
_MAX_FLOAT = 3e38  # what FLOAT32 holds
SOFTMAX, SIGMOID = 1, 2  # llama.cpp's gating functions


@dataclass(frozen=True)
class Architecture:
    """One row of ARCHITECTURES.

    gguf: llama.cpp's name. permuted: query and key rows are reordered, since llama.cpp rotates neighbours there.
    fixed: settings that llama.cpp does not vary, with what it takes them for; a config that says otherwise is refused.
    values: keys beyond the common ones, without the prefix.
    """

    gguf: str
    fixed: Mapping[str, Any]
    values: Callable[[Config], dict[str, Any]]
    permuted: bool = False


def _expert_width(config: Config) -> dict[str, Any]:
    return {"expert_feed_forward_length": whole(config, "moe_intermediate_size")}


def _mixtral(config: Config) -> dict[str, Any]:
    return {"rope.dimension_count": head_dim(config)}


def _qwen2(config: Config) -> dict[str, Any]:
    return {
        **_expert_width(config),
        "expert_shared_feed_forward_length": whole(config, "shared_expert_intermediate_size"),
    }


def _qwen3(config: Config) -> dict[str, Any]:
    return {**_expert_width(config), **_head_lengths(config)}


def _head_lengths(config: Config) -> dict[str, Any]:
    return {"attention.key_length": head_dim(config), "attention.value_length": head_dim(config)}


def _granite(config: Config) -> dict[str, Any]:
    out: dict[str, Any] = {"rope.dimension_count": head_dim(config)}
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ):
        if config.get(name):
            out[key] = _finite(name, config[name])
    if config.get("shared_intermediate_size"):
        out["expert_shared_feed_forward_length"] = whole(config, "shared_intermediate_size")
    return out


def _gpt_oss(config: Config) -> dict[str, Any]:
    return {
        **_head_lengths(config),
        "expert_feed_forward_length": whole(config, "intermediate_size"),
        "attention.sliding_window": whole(config, "sliding_window"),
    }


def _deepseek(config: Config) -> dict[str, Any]:
    rank, rope = whole(config, "kv_lora_rank"), whole(config, "qk_rope_head_dim")
    out: dict[str, Any] = {
        **_expert_width(config),
        "attention.head_count_kv": 1,  # absorbed: keys and values of all heads are one of rank + rope
        "leading_dense_block_count": whole(config, "first_k_dense_replace"),
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": whole(config, "qk_nope_head_dim") + rope,
        "attention.value_length_mla": whole(config, "v_head_dim"),
        "expert_shared_count": whole(config, "n_shared_experts", 0),
        "expert_weights_scale": _float(config, "routed_scaling_factor", 1.0),
        "expert_weights_norm": bool(config.get("norm_topk_prob", False)),
        "rope.dimension_count": rope,
    }
    if config.get("q_lora_rank") is not None:
        out["attention.q_lora_rank"] = whole(config, "q_lora_rank")
    v3 = "DeepseekV3ForCausalLM" in config["architectures"]
    scoring = config.get("scoring_func", "sigmoid" if v3 else "softmax")
    out["expert_gating_func"] = {"softmax": SOFTMAX, "sigmoid": SIGMOID}.get(str(scoring))
    if out["expert_gating_func"] is None:
        raise UnsupportedError(f"`config.json`: a `scoring_func` of {scoring!r:.40}")
    n_group = whole(config, "n_group", 1)
    if n_group > 1:
        if config.get("topk_method", "noaux_tc" if v3 else "") != "noaux_tc":
            raise UnsupportedError(
                f"`config.json`: llama.cpp does not choose groups of experts by {config.get('topk_method')!r}",
                hint="of DeepSeek's models it knows V2-Lite's and V3's way",
            )
        out |= {"expert_group_count": n_group, "expert_group_used_count": whole(config, "topk_group")}
    mscale = rope_scaling(config).get("mscale_all_dim")
    if mscale:
        out["rope.scaling.yarn_log_multiplier"] = 0.1 * _finite("mscale_all_dim", mscale)
    return out


_SILU = {"hidden_act": ("silu",)}
_NO_BIAS = {"attention_bias": (False,)}
_EVERY_LAYER: dict[str, tuple[Any, ...]] = {
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
    "use_sliding_window": (False, None),
}

ARCHITECTURES: dict[str, Architecture] = {
    "MixtralForCausalLM": Architecture("llama", {**_SILU, "sliding_window": (None,)}, _mixtral, permuted=True),
    "Qwen2MoeForCausalLM": Architecture("qwen2moe", {**_SILU, **_EVERY_LAYER, "norm_topk_prob": (False,)}, _qwen2),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3moe", {**_SILU, **_EVERY_LAYER, "norm_topk_prob": (True,), **_NO_BIAS}, _qwen3
    ),
    "OlmoeForCausalLM": Architecture(
        "olmoe", {**_SILU, "norm_topk_prob": (False,), "clip_qkv": (None,), **_NO_BIAS}, lambda config: {}
    ),
    "DeepseekV2ForCausalLM": Architecture(
        "deepseek2", {**_SILU, "moe_layer_freq": (1,), **_NO_BIAS}, _deepseek
    ),
    "DeepseekV3ForCausalLM": Architecture(
        "deepseek2", {**_SILU, "moe_layer_freq": (1,), **_NO_BIAS, "rope_interleave": (True,)}, _deepseek
    ),
    "GraniteMoeForCausalLM": Architecture("granitemoe", {**_SILU, **_NO_BIAS}, _granite, permuted=True),
    "GraniteMoeSharedForCausalLM": Architecture(
        "granitemoe", {**_SILU, **_NO_BIAS}, _granite, permuted=True
    ),
    "GptOssForCausalLM": Architecture("gpt-oss", {}, _gpt_oss),
}  # fmt: skip
"""By the first of config.json's `architectures`."""

_READ_METHODS = (None, "mxfp4", "fp8")  # gpt-oss's packed experts; DeepSeek's floats with a scale a block

# What transformers takes for a setting that the file does not name, where it is not what llama.cpp fixes.
_DEFAULTS: dict[str, dict[str, Any]] = {"Qwen3MoeForCausalLM": {"norm_topk_prob": False}}
_ROPE_THETA = {"MixtralForCausalLM": 1e6, "GptOssForCausalLM": 150000.0}
_EPS = {"OlmoeForCausalLM": 1e-5, "MixtralForCausalLM": 1e-5, "GptOssForCausalLM": 1e-5}


def architecture_of(config: Config) -> tuple[str, Architecture]:
    """The checkpoint's class and its row. Raises UnsupportedError."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name not in ARCHITECTURES:
        known = ", ".join(key.removesuffix("ForCausalLM") for key in ARCHITECTURES)
        raise UnsupportedError(
            f"checkpoints of the architecture `{name[:60]}` are not converted", hint=f"known: {known}"
        )
    return name, ARCHITECTURES[name]


def check_fixed(config: Config) -> None:
    """Raises UnsupportedError for a setting that llama.cpp cannot follow."""
    name, row = architecture_of(config)
    quantized = config.get("quantization_config") or {}
    method = quantized.get("quant_method") if isinstance(quantized, dict) else "?"
    if method not in _READ_METHODS or (method == "fp8" and quantized.get("weight_block_size") != [128, 128]):
        raise UnsupportedError(
            f"the checkpoint is quantized by {method!r}", hint="take the checkpoint that it was made from"
        )
    for key, allowed in row.fixed.items():
        value = config.get(key, _DEFAULTS.get(name, {}).get(key, allowed[0]))
        if value not in allowed:
            raise UnsupportedError(
                f"`config.json` says `{key}` is {value!r}; llama.cpp computes {row.gguf} with {allowed[0]!r}",
                hint="the converted model would not be the model that was trained",
            )


def n_expert(config: Config) -> int:
    """Routed experts of a layer."""
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key) is not None:
            return whole(config, key)
    raise UnsupportedError(
        "`config.json` names no number of experts: this is a dense model",
        hint="edgemoe converts Mixture-of-Experts models; llama.cpp converts dense ones",
    )


def n_layer(config: Config) -> int:
    """Blocks of the model. The gguf package makes a table as long as that, so it is bounded before."""
    n = whole(config, "num_hidden_layers")
    if not 1 <= n <= MAX_LAYERS:
        raise FormatError(f"`config.json`: `num_hidden_layers` is {n}, from 1 to {MAX_LAYERS} are possible")
    return n


def head_dim(config: Config) -> int:
    """Length of an attention head."""
    if config.get("head_dim") is not None:
        return whole(config, "head_dim")
    n_head = whole(config, "num_attention_heads")
    if n_head < 1:
        raise FormatError("`config.json`: `num_attention_heads` is 0")
    return whole(config, "hidden_size") // n_head


def rope_scaling(config: Config) -> dict[str, Any]:
    """`rope_parameters` of new files or `rope_scaling` of old ones, with `rope_type` named one way."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise FormatError("`config.json`: the rope's parameters are no object")
    kind = found.get("rope_type", found.get("type", "default"))
    return {**found, "rope_type": kind}


def metadata(config: Config, n_vocab: int) -> dict[str, Value]:
    """All keys of the architecture, with its prefix. Raises FormatError, UnsupportedError."""
    name, row = architecture_of(config)
    check_fixed(config)
    scaling = rope_scaling(config)
    values: dict[str, Any] = {
        "block_count": whole(config, "num_hidden_layers"),
        "context_length": whole(config, "max_position_embeddings"),
        "embedding_length": whole(config, "hidden_size"),
        "feed_forward_length": whole(config, "intermediate_size"),
        "attention.head_count": whole(config, "num_attention_heads"),
        "attention.head_count_kv": whole(config, "num_key_value_heads", whole(config, "num_attention_heads")),
        "attention.layer_norm_rms_epsilon": _epsilon(config, _EPS.get(name, 1e-6)),
        "rope.freq_base": _float(scaling, "rope_theta", _float(config, "rope_theta", _ROPE_THETA.get(name, 10000.0))),
        "expert_count": n_expert(config),
        "expert_used_count": whole(config, "num_experts_per_tok"),
        "vocab_size": n_vocab,
        **_rope(scaling, config),
        **row.values(config),
    }
    if values["expert_used_count"] > values["expert_count"]:
        raise FormatError(f"`config.json`: {values['expert_used_count']} of {values['expert_count']} experts a token")
    out = {"general.architecture": encode(row.gguf)}
    for key, value in values.items():
        out[f"{row.gguf}.{key}"] = encode(value, FLOAT32 if isinstance(value, float) else None)
    return out


def _epsilon(config: Config, default: float) -> float:
    value = _float(config, "rms_norm_eps", default)
    if value < 0:
        raise FormatError(f"`config.json`: `rms_norm_eps` is {value!r}, below zero")
    return value


def _rope(scaling: Mapping[str, Any], config: Config) -> dict[str, Any]:
    kind = scaling["rope_type"]
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn") or scaling.get("factor") is None:
        raise UnsupportedError(
            f"`config.json`: rope scaling of the type {kind!r}", hint="`linear` and `yarn` are known"
        )
    out: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": _finite("factor", scaling["factor"])}
    if kind == "yarn":
        # llama.cpp derives the factor of attention from the factor of the rope, as transformers does by default.
        if scaling.get("attention_factor") is not None or scaling.get("mscale") != scaling.get("mscale_all_dim"):
            raise UnsupportedError("`config.json`: a yarn rope with an `attention_factor` or two `mscale` of its own")
        trained = whole(config, "max_position_embeddings")
        out["rope.scaling.original_context_length"] = whole(scaling, "original_max_position_embeddings", trained)
        for key, name in (
            ("yarn_ext_factor", "extrapolation_factor"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ):
            if scaling.get(name) is not None:
                out[f"rope.scaling.{key}"] = _finite(name, scaling[name])
    return out


def _finite(key: str, value: object) -> float:
    """A number that single precision holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MAX_FLOAT:
        raise FormatError(f"`config.json`: `{key}` is {value!r:.80}, a number is due")
    return float(value)


def _float(config: Config, key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    return _finite(key, value)


def whole(config: Config, key: str, default: int | None = None) -> int:
    """A count or a length of config.json. Raises FormatError for anything else."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise FormatError(f"`config.json`: `{key}` is {value!r:.80}, a whole number is due")
    return value
