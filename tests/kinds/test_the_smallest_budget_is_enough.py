"""A budget that was too small names one that works: asked again with exactly that it opens, whatever is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tinymoe

from edgemoe.bench.limit import LimitUnavailable, memory_limit

# Asks with too little, then in the same process with what the refusal named.
PYTHON = """
import sys, edgemoe
for memory in map(int, sys.argv[2:]):
    try:
        with edgemoe.load(sys.argv[1], memory=memory, ctx=512) as engine:
            engine.eval([65, 66, 67])
    except edgemoe.BudgetError as error:
        with edgemoe.load(sys.argv[1], memory=error.smallest, ctx=512) as engine:
            engine.eval([65, 66, 67])
            print(error.smallest)
"""
SESSION = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from csession import CSession, TooSmall
model, cache = Path(sys.argv[1]), Path(os.environ["EDGEMOE_CACHE"])
asked = {"n_ctx": 512, "n_threads": 2}
try:
    CSession(model, cache, memory=int(sys.argv[2]), **asked)
except TooSmall as refused:
    with CSession(model, cache, memory=refused.smallest, **asked):
        print(refused.smallest)
"""


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "gemma4-fused"])
def test_the_named_budget_opens_in_the_same_process_and_in_a_new_one(tmp_path: Path, arch: str) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", arch)
    named = _child(tmp_path / "first", PYTHON, str(model), str(30 << 20))
    assert _child(tmp_path / "second", PYTHON, str(model), named) == ""


def test_in_a_session_of_the_c_interface_too(tmp_path: Path) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    assert _child(tmp_path / "cache", SESSION, str(model), str(20 << 20), str(Path(tinymoe.__file__).parent))


@pytest.mark.parametrize("memory", [2**48, 2**62, 2**63, 2**64 - 1])
def test_more_than_any_memory_is_no_other_number(tmp_path: Path, memory: int) -> None:
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe")
    assert _child(tmp_path / "cache", SESSION, str(model), str(memory), str(Path(tinymoe.__file__).parent)) == ""


def _child(cache: Path, code: str, *arguments: str) -> str:
    """What it prints: the smallest budget that a refusal named, in bytes."""
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "EDGEMOE_CACHE": str(cache)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout.strip()


def test_planning_fits_where_the_model_does(tmp_path: Path) -> None:
    """The first time, when drive and kernels are measured: under a kernel limit little above the budget."""
    model = tinymoe.write(tmp_path / "m.gguf", "qwen3moe", expert_type="Q8_0")
    command = [str(Path(sys.executable).with_name("edgemoe")), "plan", str(model), "--memory", "77MiB"]
    try:
        with memory_limit(80 << 20, f"edgemoe-test-{time.monotonic_ns()}") as limit:
            planned = subprocess.run(
                command, env={**os.environ, "EDGEMOE_CACHE": str(tmp_path / "fresh")}, preexec_fn=limit.joiner(),
                capture_output=True, text=True, check=False, timeout=120,
            )  # fmt: skip
            killed = limit.n_kill()
    except LimitUnavailable as why:
        pytest.skip(str(why))
    assert (planned.returncode, killed) == (0, 0), planned.stderr
