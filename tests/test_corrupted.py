"""Files with wrong bytes in their header: an error in words or an answer, never the end of the process."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tinymoe
from inchild import is_finding, outcome

from edgemoe import _native

N_FILE = 120
EXTREMES = (b"\xff" * 8, b"\0" * 8, (2**62).to_bytes(8, "little"), (2**31).to_bytes(8, "little"))


def _damage(good: bytes, n_head: int, seed: int) -> bytes:
    """Random bytes, an absurd number, an early end, or a piece of the header in the wrong place."""
    generator, content = random.Random(seed), bytearray(good)
    at = generator.randrange(n_head - 64)
    match seed % 4:
        case 0:
            for _ in range(generator.choice((1, 2, 5))):
                content[generator.randrange(n_head)] = generator.randrange(256)
        case 1:
            content[at : at + 8] = generator.choice(EXTREMES)
        case 2:
            del content[generator.randrange(len(content)) :]
        case _:
            other, length = generator.randrange(n_head - 64), generator.randrange(1, 64)
            content[at : at + length] = content[other : other + length]
    return bytes(content)


def test_no_damaged_header_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    _native.library()
    good = tinymoe.write(tmp_path / "good.gguf", "qwen3moe", n_layer=1).read_bytes()
    n_head = good.index(b"blk.0.attn_k.weight") + 400  # metadata, vocabulary and the first tensors
    path, bad = tmp_path / "bad.gguf", []
    for seed in range(N_FILE):
        path.write_bytes(_damage(good, n_head, seed))
        said = outcome(path, threads=1)
        if is_finding(said):
            bad.append((seed, said))
    assert bad == []
