"""Types, numbers and kinds of models that llama.cpp has no kernel or no use for: an error in words, never a crash."""

from __future__ import annotations

import os
from pathlib import Path

import gguf_edit
import numpy as np
import pytest
import tinymoe
from gguf_edit import F32, STRING, U32, Parts, TensorPart
from inchild import ANSWERED, outcome

from edgemoe import _native

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child for each file")

NORM, QUERY, ROUTER = "blk.0.attn_norm.weight", "blk.1.attn_q.weight", "blk.0.ffn_gate_inp.weight"
EPSILON = "qwen3moe.attention.layer_norm_rms_epsilon"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    _native.library()
    return tinymoe.write(tmp_path_factory.mktemp("good") / "good.gguf", "qwen3moe", n_layer=2, dense_type="F32")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [NORM, "output_norm.weight", QUERY, ROUTER, "output.weight", "token_embd.weight"])
@pytest.mark.parametrize("kind", ["F64", "I64", "I8", "Q8_K"])
def test_a_type_without_a_kernel_is_named_with_its_tensor(tmp_path: Path, good: Path, name: str, kind: str) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.retype(name, kind))
    said = outcome(path)
    assert f"`{name}` has type {kind[:2].lower()}" in said


@pytest.mark.parametrize(("name", "kind"), [(NORM, "BF16"), (NORM, "Q8_0"), (NORM, "F16"), (ROUTER, "I32")])
def test_a_type_that_is_right_elsewhere_is_refused_where_it_is_not(
    tmp_path: Path, good: Path, name: str, kind: str
) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.retype(name, kind))
    assert f"`{name}` has type {kind.lower()}" in outcome(path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K"])
def test_what_the_kernels_take_is_still_run(tmp_path: Path, good: Path, kind: str) -> None:
    def change(parts: Parts) -> None:
        for name in (QUERY, ROUTER, "output.weight", "token_embd.weight"):
            parts.retype(name, kind)

    assert outcome(gguf_edit.edited(good, tmp_path / "m.gguf", change)) == ANSWERED


@pytest.mark.parametrize("kind", [F32, gguf_edit.F64])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_none(tmp_path: Path, good: Path, kind: int, value: float) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.set(EPSILON, kind, value))
    assert EPSILON in outcome(path)


def test_a_model_without_tokenizer(tmp_path: Path, good: Path) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.set("tokenizer.ggml.model", STRING, "no_vocab"))
    assert "no tokenizer" in outcome(path)


@pytest.mark.parametrize("arch", ["llada-moe", "rnd1"])
def test_a_diffusion_model(tmp_path: Path, good: Path, arch: str) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.rename_arch(arch))
    assert "diffusion" in outcome(path)


def test_an_embedding_model(tmp_path: Path, good: Path) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", _as_nomic_bert)
    assert "embeddings" in outcome(path)


def _as_nomic_bert(parts: Parts) -> None:
    """An encoder: norms after each half with biases, no gate, experts in the second layer of two."""
    rng = np.random.default_rng(1)

    def tensor(name: str, *shape: int) -> TensorPart:
        values = rng.standard_normal(tuple(reversed(shape)), dtype=np.float32) / 16
        return TensorPart(name, shape, 0, values.tobytes())

    parts.rename_arch("nomic-bert-moe")
    for key, value in {"moe_every_n_layers": 2, "pooling_type": 1, "feed_forward_length": 256}.items():
        parts.set(f"nomic-bert-moe.{key}", U32, value)
    parts.set("nomic-bert-moe.attention.layer_norm_epsilon", F32, 1e-5)
    parts.set("nomic-bert-moe.attention.causal", gguf_edit.BOOL, False)
    parts.set("tokenizer.ggml.token_type_count", U32, 2)
    n_embd, n_vocab = 256, len(tinymoe.vocabulary())
    parts.tensors = [tensor("token_embd.weight", n_embd, n_vocab)]
    for part in ("weight", "bias"):
        parts.tensors.append(tensor(f"token_embd_norm.{part}", n_embd))
    for i in range(2):
        for side, rows in (("q", 256), ("k", 128), ("v", 128)):
            parts.tensors.append(tensor(f"blk.{i}.attn_{side}.weight", n_embd, rows))
        parts.tensors.append(tensor(f"blk.{i}.attn_output.weight", 256, n_embd))
        for name in ("attn_output_norm", "layer_output_norm"):
            parts.tensors += [tensor(f"blk.{i}.{name}.{part}", n_embd) for part in ("weight", "bias")]
        stem, more = ("_exps", (16,)) if i == 1 else ("", ())
        parts.tensors.append(tensor(f"blk.{i}.ffn_up{stem}.weight", n_embd, 256, *more))
        parts.tensors.append(tensor(f"blk.{i}.ffn_down{stem}.weight", 256, n_embd, *more))
    parts.tensors.append(tensor("blk.1.ffn_gate_inp.weight", n_embd, 16))


def _stretched(tensor: TensorPart, shape: tuple[int, ...]) -> TensorPart:
    return TensorPart(tensor.name, shape, 0, bytes(4 * int(np.prod(shape))))


@pytest.mark.parametrize(
    ("shape", "words"),
    [((0, 256, 16), "dimension of 0"), ((256, 0, 16), "dimension of 0"), ((1, 1, 3_000_000), "experts")],
)
def test_experts_of_absurd_shapes(tmp_path: Path, good: Path, shape: tuple[int, ...], words: str) -> None:
    def change(parts: Parts) -> None:
        for role in ("up", "gate", "down"):
            parts.change(f"blk.0.ffn_{role}_exps.weight", lambda t: _stretched(t, shape))

    assert words in outcome(gguf_edit.edited(good, tmp_path / "m.gguf", change))


def test_a_token_list_that_is_none(tmp_path: Path, good: Path) -> None:
    path = gguf_edit.edited(good, tmp_path / "m.gguf", lambda p: p.set("tokenizer.ggml.tokens", STRING, "all"))
    assert "llama.cpp" in outcome(path)
