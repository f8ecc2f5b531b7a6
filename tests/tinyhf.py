"""Write tiny Hugging Face checkpoints of Mixture-of-Experts models with random weights.

Every tensor is drawn from its own name, so a checkpoint is the same on every machine: `golden/hf_logits.json` holds
what transformers computes with them (made by `hf_reference.py`).
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tinymoe

Shapes = dict[str, tuple[int, ...]]
Array = npt.NDArray[Any]

HIDDEN, WIDTH, N_HEAD, N_KV, HEAD, N_EXPERT, N_LAYER = 64, 32, 4, 2, 16, 8, 2
N_VOCAB = len(tinymoe.vocabulary()) + 6  # more rows than tokens, as real checkpoints have
_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN, "num_attention_heads": N_HEAD, "num_key_value_heads": N_KV, "num_hidden_layers": N_LAYER,
    "vocab_size": N_VOCAB, "max_position_embeddings": 512, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 263, "eos_token_id": 265,
    "attention_dropout": 0.0, "attention_bias": False,
}  # fmt: skip
_MOE: dict[str, Any] = {"moe_intermediate_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_experts_per_tok": 3}
_YARN: dict[str, Any] = {
    "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1, "type": "yarn",
}  # fmt: skip
_MLA: dict[str, Any] = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": N_EXPERT, "n_shared_experts": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "num_key_value_heads": N_HEAD, "num_hidden_layers": 3, "rope_theta": 10000.0,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": WIDTH,
        "num_local_experts": N_EXPERT, "num_experts_per_tok": 2, "rope_theta": 1e6, "sliding_window": None,
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", **_MOE, "num_experts": N_EXPERT,
        "shared_expert_intermediate_size": 2 * WIDTH, "norm_topk_prob": False, "decoder_sparse_step": 1,
        "rope_theta": 10000.0, "use_sliding_window": False, "qkv_bias": True,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **_MOE, "num_experts": N_EXPERT,
        "norm_topk_prob": True, "head_dim": 32, "decoder_sparse_step": 1, "rope_theta": 10000.0, "mlp_only_layers": [],
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "intermediate_size": WIDTH,
        "num_experts": N_EXPERT, "num_experts_per_tok": 3, "norm_topk_prob": False, "rope_theta": 10000.0,
        "num_key_value_heads": N_HEAD, "clip_qkv": None,
    },
    "granitemoe": {
        "architectures": ["GraniteMoeForCausalLM"], "model_type": "granitemoe", "intermediate_size": WIDTH,
        "num_local_experts": N_EXPERT, "num_experts_per_tok": 3, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "embedding_multiplier": 1.5, "residual_multiplier": 0.7, "attention_multiplier": 0.2, "logits_scaling": 2.0,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "intermediate_size": WIDTH, "head_dim": HEAD,
        "num_local_experts": N_EXPERT, "num_experts_per_tok": 3, "rope_theta": 150000.0, "sliding_window": 8,
        "rope_scaling": {**_YARN, "rope_type": "yarn"}, "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek_v2": {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **_MOE, **_MLA, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "scoring_func": "softmax", "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v2_lite": {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", **_MOE, **_MLA, "n_group": 1,
        "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False, "routed_scaling_factor": 1.0,
        "scoring_func": "softmax", "num_hidden_layers": 27, "q_lora_rank": None,
    },
    "deepseek_v3": {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **_MOE, **_MLA, "n_group": 4,
        "topk_group": 2, "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid", "rope_scaling": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}  # fmt: skip


def config_of(arch: str) -> dict[str, Any]:
    """config.json of a tiny checkpoint."""
    return {**_COMMON, **CONFIGS[arch]}


def shapes_of(arch: str) -> Shapes:
    """Every tensor of a checkpoint, named as the hub's are."""
    config = config_of(arch)
    out: Shapes = {"model.embed_tokens.weight": (N_VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (N_VOCAB, HIDDEN)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        out |= {f"{p}input_layernorm.weight": (HIDDEN,), f"{p}post_attention_layernorm.weight": (HIDDEN,)}
        attention = _latent_attention(config) if arch.startswith("deepseek") else _attention(arch, config)
        out |= {f"{p}self_attn.{name}": shape for name, shape in attention.items()}
        out |= {p + name: shape for name, shape in _ffn(arch, config, layer).items()}
    return out


def _attention(arch: str, config: Mapping[str, Any]) -> Shapes:
    head = config.get("head_dim", HEAD)
    n_q, n_kv = N_HEAD * head, config["num_key_value_heads"] * head
    out: Shapes = {
        "q_proj.weight": (n_q, HIDDEN), "k_proj.weight": (n_kv, HIDDEN), "v_proj.weight": (n_kv, HIDDEN),
        "o_proj.weight": (HIDDEN, n_q),
    }  # fmt: skip
    if arch in ("qwen2_moe", "gpt_oss"):
        out |= {"q_proj.bias": (n_q,), "k_proj.bias": (n_kv,), "v_proj.bias": (n_kv,)}
    if arch == "gpt_oss":
        out |= {"o_proj.bias": (HIDDEN,), "sinks": (N_HEAD,)}
    if arch == "qwen3_moe":
        out |= {"q_norm.weight": (head,), "k_norm.weight": (head,)}
    if arch == "olmoe":
        out |= {"q_norm.weight": (n_q,), "k_norm.weight": (n_kv,)}
    return out


def _latent_attention(config: Mapping[str, Any]) -> Shapes:
    rank, nope, rope, value = (
        config[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    out: Shapes = {
        "kv_a_proj_with_mqa.weight": (rank + rope, HIDDEN), "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (N_HEAD * (nope + value), rank), "o_proj.weight": (HIDDEN, N_HEAD * value),
    }  # fmt: skip
    if config["q_lora_rank"] is None:
        return {**out, "q_proj.weight": (N_HEAD * (nope + rope), HIDDEN)}
    low = config["q_lora_rank"]
    return {
        **out, "q_a_proj.weight": (low, HIDDEN), "q_a_layernorm.weight": (low,),
        "q_b_proj.weight": (N_HEAD * (nope + rope), low),
    }  # fmt: skip


def _mlp(prefix: str, width: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (width, HIDDEN), f"{prefix}.up_proj.weight": (width, HIDDEN),
        f"{prefix}.down_proj.weight": (HIDDEN, width),
    }  # fmt: skip


def _ffn(arch: str, config: Mapping[str, Any], layer: int) -> Shapes:
    if layer < config.get("first_k_dense_replace", 0):
        return _mlp("mlp", config["intermediate_size"])
    if arch == "granitemoe":
        return {
            "block_sparse_moe.router.layer.weight": (N_EXPERT, HIDDEN),
            "block_sparse_moe.input_linear.weight": (N_EXPERT, 2 * WIDTH, HIDDEN),
            "block_sparse_moe.output_linear.weight": (N_EXPERT, HIDDEN, WIDTH),
        }
    if arch == "gpt_oss":
        return {
            "mlp.router.weight": (N_EXPERT, HIDDEN), "mlp.router.bias": (N_EXPERT,),
            "mlp.experts.gate_up_proj": (N_EXPERT, HIDDEN, 2 * WIDTH),
            "mlp.experts.gate_up_proj_bias": (N_EXPERT, 2 * WIDTH),
            "mlp.experts.down_proj": (N_EXPERT, WIDTH, HIDDEN), "mlp.experts.down_proj_bias": (N_EXPERT, HIDDEN),
        }  # fmt: skip
    if arch == "mixtral":
        out: Shapes = {"block_sparse_moe.gate.weight": (N_EXPERT, HIDDEN)}
        for expert in range(N_EXPERT):
            p = f"block_sparse_moe.experts.{expert}"
            out |= {
                f"{p}.w1.weight": (WIDTH, HIDDEN),
                f"{p}.w3.weight": (WIDTH, HIDDEN),
                f"{p}.w2.weight": (HIDDEN, WIDTH),
            }
        return out
    out = {"mlp.gate.weight": (N_EXPERT, HIDDEN)}
    for expert in range(N_EXPERT):
        out |= _mlp(f"mlp.experts.{expert}", WIDTH)
    if arch == "qwen2_moe":
        out |= {**_mlp("mlp.shared_expert", 2 * WIDTH), "mlp.shared_expert_gate.weight": (1, HIDDEN)}
    if arch.startswith("deepseek"):
        out |= _mlp("mlp.shared_experts", 2 * WIDTH)
    if arch == "deepseek_v3":
        out["mlp.gate.e_score_correction_bias"] = (N_EXPERT,)
    return out


def draw(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The tensor's values, rounded to bfloat16."""
    values = np.random.default_rng([1, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        values = 1 + values / np.float32(10)
    elif name.endswith(("bias", "sinks")):
        values = values / np.float32(5)
    else:
        length = shape[1] if name.endswith(("experts.gate_up_proj", "experts.down_proj")) else shape[-1]
        values *= (3.0 if "gate.weight" in name or "router" in name else 1.2) / np.float32(length) ** 0.5
    return (values.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32)


def encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Values as a safetensors dtype."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A safetensors file of (dtype, shape, bytes) by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of tinymoe's vocabulary, cut as Qwen's."""
    from edgemoe.converters.hf_tokenizer import _QWEN

    tokens = tinymoe.vocabulary()
    n = len(tokens) - len(tinymoe.CONTROL)
    split = {"type": "Split", "pattern": {"Regex": _QWEN}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": n + i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for i, name in enumerate(tinymoe.CONTROL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(tokens[:n])}, "merges": tinymoe.MERGES,
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "add_bos_token": False, "chat_template": tinymoe.CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write(folder: Path, arch: str, *, n_shard: int = 2, dtype: str = "BF16") -> Path:
    """A whole checkpoint in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: (dtype, shape, encode(draw(name, shape), dtype)) for name, shape in shapes_of(arch).items()}
    save(folder, config_of(arch), tensors, n_shard=n_shard)
    return folder


def save(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], *, n_shard: int
) -> None:
    """config.json, tokenizer and shards."""
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_tokenizer(folder)
    if n_shard == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    places: dict[str, str] = {}
    names = list(tensors)
    for i in range(n_shard):
        shard = f"model-{i + 1:05d}-of-{n_shard:05d}.safetensors"
        part = names[len(names) * i // n_shard : len(names) * (i + 1) // n_shard]
        write_safetensors(folder / shard, {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
