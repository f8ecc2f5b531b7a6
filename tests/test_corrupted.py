"""Files with wrong bytes in their header: an error in words or an answer, never the end of the process."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import tinymoe

import edgemoe
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


def _open_in_child(path: Path) -> int:
    """Wait status of a process that opens the file and computes three tokens; 1 exits for an unexpected exception."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    signal.alarm(60)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        with edgemoe.load(path, memory="900M", ctx=64, threads=1) as engine:
            engine.eval([65, 66, 67])
    except edgemoe.EdgeMoEError as error:
        os._exit(0 if error.message and "\n" not in error.message else 2)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a child for each file")
def test_no_damaged_header_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path / "cache"))
    _native.library()
    good = tinymoe.write(tmp_path / "good.gguf", "qwen3moe", n_layer=1).read_bytes()
    n_head = good.index(b"blk.0.attn_k.weight") + 400  # metadata, vocabulary and the first tensors
    path, bad = tmp_path / "bad.gguf", []
    for seed in range(N_FILE):
        path.write_bytes(_damage(good, n_head, seed))
        status = _open_in_child(path)
        if status != 0:
            bad.append((seed, os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)))
    assert bad == []
