"""The same prompt answered with every expert in memory and with a share of them, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EdgeMoEError, UsageError

SHARE = 1 / 3
N_CTX = 512
# The same in both, so that not even a rounding differs; small, so that a small budget can lend its work space.
N_UBATCH = 64

OnPiece = Callable[[int, str], None]
"""Receives (side, piece): 0 is the resident one, 1 the streamed."""


def answer_twice(
    path: Path, prompt: str, *, max_tokens: int, threads: int | None, on_piece: OnPiece
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `answer.py` says of the resident side and of the streamed one, which run one after the other.

    Raises EdgeMoEError with what went wrong in a child.
    """
    order = {
        "path": str(path),
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ctx": N_CTX,
        "threads": threads,
        "n_ubatch": N_UBATCH,
    }
    resident = _answer({**order, "share": 1}, lambda piece: on_piece(0, piece))
    return resident, _answer({**order, "share": SHARE}, lambda piece: on_piece(1, piece))


def _answer(order: dict[str, Any], on_piece: Callable[[str], None]) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgemoe.bench.answer"]
    last: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(order))
            child.stdin.close()
            for line in child.stdout:
                last = json.loads(line)
                if "piece" in last:
                    on_piece(last["piece"])
        except BaseException:  # Ctrl-C here: the child must not go on computing
            child.kill()
            raise
    if "error" in last:
        kind = UsageError if last["exit_code"] == UsageError.exit_code else EdgeMoEError
        raise kind(last["error"], hint=last["hint"])
    if "text" not in last:
        raise EdgeMoEError(f"the process that answers ended with status {child.returncode}")
    return last
