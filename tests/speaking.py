"""Tiny models that say what a test wants: after a line end, given pieces of text, a token each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tinymoe
from tinymoe_archs import Tensor


def write(
    path: Path, pieces: Sequence[str | bytes], *, metadata: Mapping[str, Any] | None = None, **geometry: Any
) -> Path:
    """A MoE of one layer whose attention and experts add next to nothing: each token leads to the next of the chain.

    pieces: all different; bytes may be parts of a character. metadata: keys of the file that are set otherwise.
    """
    hidden = 256
    names = tinymoe.byte_names()
    vocabulary = list(tinymoe.vocabulary())
    spelt = ["".join(names[byte] for byte in (piece.encode() if isinstance(piece, str) else piece)) for piece in pieces]
    plain = vocabulary[: len(vocabulary) - len(tinymoe.CONTROL)]
    tokens = [*plain, *(name for name in spelt if name not in plain), *tinymoe.CONTROL]
    chain = [tokens.index(name) for name in (names[ord("\n")], *spelt, "<|im_end|>")]
    assert len(set(chain)) == len(chain), "pieces must differ"
    usual_draw, usual_values = tinymoe.draw, tinymoe._key_values

    def draw(tensor: Tensor, seed: int) -> tinymoe.F32Array:
        embedding = np.random.default_rng(7).standard_normal((len(tokens), hidden), dtype=np.float32)
        if tensor.name == "token_embd.weight":
            return embedding
        if tensor.name == "output.weight":
            output = np.zeros_like(embedding)
            for before, after in zip(chain, chain[1:], strict=False):
                output[after] = embedding[before] / 16
            return output
        if "norm" in tensor.name:
            return np.ones(tensor.shape, np.float32)
        values = usual_draw(tensor, seed)
        quiet = tensor.name.endswith(("attn_output.weight", "ffn_down_exps.weight"))
        return np.asarray(values * np.float32(1e-4) if quiet else values, np.float32)

    def values(*arguments: Any) -> dict[str, Any]:
        return {**usual_values(*arguments), **(metadata or {})}

    with (
        mock.patch.object(tinymoe, "vocabulary", lambda: tokens),
        mock.patch.object(tinymoe, "draw", draw),
        mock.patch.object(tinymoe, "_key_values", values),
    ):
        return tinymoe.write(path, "qwen3moe", expert_type="F32", dense_type="F32", n_layer=1, **geometry)
