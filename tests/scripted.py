"""Tiny models that say what a test wants them to say: each token is followed by one that was chosen for it.

The embedding of a token goes through a model that adds almost nothing to it, and the output row of the token that is to
follow is that embedding. So a token can occur once in a script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tinymoe

_FAINT = ("attn_output.weight", "ffn_down_exps.weight")


def spelled(text: str) -> str:
    """A text as GPT-2's vocabulary writes its bytes."""
    names = tinymoe.vocabulary()
    return "".join(names[byte] for byte in text.encode())


def write(
    path: Path,
    says: Sequence[str] = (),
    *,
    after: str = "\n",
    end: str = "<|im_end|>",
    control: Sequence[str] = (),
    template: str | None = None,
    keys: Mapping[str, Any] | None = None,
) -> Path:
    """A model that after the token `after` says these tokens and `end`; one of random weights where it says nothing.

    control: control tokens beside those of tinymoe. keys: metadata that is set, or with None left out.
    """
    known = tinymoe.vocabulary()
    marks = [*tinymoe.CONTROL, *control]

    def named(text: str) -> str:
        return text if text in marks else spelled(text)

    tokens = list(dict.fromkeys([*known, *control, *map(named, says)]))
    chain = [tokens.index(named(text)) for text in (after, *says, end)] if says else []
    assert len(set(chain)) == len(chain), "a token occurs twice in this script"
    draw, key_values = tinymoe.draw, tinymoe._key_values

    def drawn(tensor: Any, seed: int) -> Any:
        values = draw(tensor, seed)
        if not says:
            return values
        if tensor.name == "output.weight":
            embeddings = draw_embeddings(seed)
            values = np.zeros_like(values)
            for this, following in zip(chain, chain[1:], strict=False):
                values[following] = embeddings[this] / len(embeddings[this]) * 8
            return values
        if tensor.name == "token_embd.weight":
            return draw_embeddings(seed)
        if "norm" in tensor.name:
            return np.ones_like(values)
        return values * np.float32(1e-4) if tensor.name.endswith(_FAINT) else values

    def draw_embeddings(seed: int) -> Any:
        return np.random.default_rng(seed).standard_normal((len(tokens), 256), dtype=np.float32)

    def keyed(*arguments: Any) -> dict[str, Any]:
        found = dict(key_values(*arguments))
        if template is not None:
            found["tokenizer.chat_template"] = template
        found.update(keys or {})
        return {key: value for key, value in found.items() if value is not None}

    with mock.patch.multiple(tinymoe, vocabulary=lambda: tokens, draw=drawn, CONTROL=marks, _key_values=keyed):
        return tinymoe.write(path, "qwen3moe", expert_type="F32", dense_type="F32", n_layer=1, n_expert=8)
