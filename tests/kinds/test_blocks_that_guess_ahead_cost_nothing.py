"""NextN (MTP) blocks, which published files of GLM-4.5, DeepSeek-V3 and others hold and no graph of ours computes.

Their experts are no token's reading, their dense weights take no memory, and the answers are those of a file without
them.
"""

from __future__ import annotations

from pathlib import Path

import gguf_edit
import numpy as np
import pytest
import tinymoe
from gguf_edit import F32, STRING, U32, Parts, TensorPart

import edgemoe
from edgemoe import _native
from edgemoe.converters.convert import Options, convert, open_source

N_EMBD, N_EXPERT, N_USED = 256, 32, 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


def _glm(path: Path, n_ahead: int) -> Path:
    """A glm4moe: a dense block, one of experts, and n_ahead that guess, larger than the buffers of a context."""
    source = tinymoe.write(path.with_suffix(".source"), "qwen3moe", n_layer=1)
    parts, n_vocab = gguf_edit.take_apart(source), len(tinymoe.vocabulary())
    parts.keys = {key: value for key, value in parts.keys.items() if key.startswith("tokenizer.")}
    parts.set("general.architecture", STRING, "glm4moe")
    numbers = {
        "block_count": 2 + n_ahead, "context_length": 512, "embedding_length": N_EMBD, "feed_forward_length": 256,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
        "attention.value_length": 64, "rope.dimension_count": 64, "expert_count": N_EXPERT,
        "expert_used_count": N_USED, "expert_feed_forward_length": 256, "expert_shared_count": 1,
        "leading_dense_block_count": 1, "expert_gating_func": 2, "vocab_size": n_vocab,
        "nextn_predict_layers": n_ahead,
    }  # fmt: skip
    for key, value in numbers.items():
        parts.set(f"glm4moe.{key}", U32, value)
    parts.set("glm4moe.attention.layer_norm_rms_epsilon", F32, 1e-5)
    parts.set("glm4moe.rope.freq_base", F32, 10000.0)
    parts.tensors = [_drawn("token_embd.weight", N_EMBD, n_vocab), _drawn("output.weight", N_EMBD, n_vocab)]
    parts.tensors.append(_drawn("output_norm.weight", N_EMBD))
    for block in range(2 + n_ahead):
        _add_block(parts, block)
    return parts.write(path)


def _add_block(parts: Parts, block: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (N_EMBD,), "post_attention_norm.weight": (N_EMBD,),
        "attn_output.weight": (256, N_EMBD),
    }  # fmt: skip
    for side, rows in (("q", 256), ("k", 128), ("v", 128)):
        shapes |= {f"attn_{side}.weight": (N_EMBD, rows), f"attn_{side}.bias": (rows,)}
    if block == 0:
        shapes |= {f"ffn_{role}.weight": (256, 256) for role in ("up", "gate", "down")}
    else:
        shapes |= {"ffn_gate_inp.weight": (N_EMBD, N_EXPERT), "exp_probs_b.bias": (N_EXPERT,)}
        shapes |= {f"ffn_{role}_exps.weight": (256, 256, N_EXPERT) for role in ("up", "gate", "down")}
        shapes |= {f"ffn_{role}_shexp.weight": (256, 256) for role in ("up", "gate", "down")}
    if block > 1:
        shapes |= {"nextn.eh_proj.weight": (2 * N_EMBD, N_EMBD)}
        shapes |= {f"nextn.{norm}.weight": (N_EMBD,) for norm in ("enorm", "hnorm", "shared_head_norm")}
    parts.tensors += [_drawn(f"blk.{block}.{name}", *shape) for name, shape in shapes.items()]


def _drawn(name: str, *shape: int) -> TensorPart:
    rng = np.random.default_rng(list(name.encode()))
    values = rng.standard_normal(tuple(reversed(shape)), dtype=np.float32) / np.float32(shape[0] ** 0.5)
    if "norm" in name:
        values += np.float32(1)
    return TensorPart(name, shape, 0, values.tobytes())


def _logits(path: Path) -> bytes:
    with edgemoe.load(path, memory="2GiB", ctx=64) as engine:
        return engine.logits([65, 66, 67]).tobytes()


def test_experts_and_dense_weights_of_such_a_block_count_for_nothing(tmp_path: Path) -> None:
    without, ahead = _glm(tmp_path / "without.gguf", 0), _glm(tmp_path / "ahead.gguf", 1)
    infos = [_native.model_info(_native.model_open(str(path))) for path in (without, ahead)]
    for name in ("token_bytes", "expert_bytes", "dense_bytes", "dense_token_bytes", "n_moe_layer", "n_expert_total"):
        assert infos[1][name] == infos[0][name], name
    assert infos[1]["token_bytes"] == N_USED * 3 * 256 * 256 * 4
    assert infos[1]["file_bytes"] > infos[0]["file_bytes"] + infos[0]["expert_bytes"]


def test_a_large_one_changes_no_answer_wherever_it_was_mapped(tmp_path: Path) -> None:
    without, ahead = _glm(tmp_path / "without.gguf", 0), _glm(tmp_path / "ahead.gguf", 2)
    expected = _logits(without)
    for _ in range(4):
        assert _logits(ahead) == expected


def test_a_converted_file_keeps_the_block_and_still_costs_nothing(tmp_path: Path) -> None:
    """Each expert in a tensor of its own: llama.cpp is shown them stacked, those of the last block too."""
    ahead, out = _glm(tmp_path / "ahead.gguf", 1), tmp_path / "converted.gguf"
    convert(open_source(ahead), out, Options(type_name="F32", dense_type="F32"))
    assert _logits(out) == _logits(ahead)
