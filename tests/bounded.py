"""A whole process under a kernel limit of its budget: what the tests of bounded memory share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgemoe.bench.limit import LimitUnavailable, memory_limit

# By so much two processes' plans may differ (the vocabulary's size is measured), and 60 kB of text are read at once.
_SLACK_BYTES = 8 << 20

# Loads, computes a prompt of real text, answers, and says what it took. stdin: the text.
CHILD = """
import json, sys
import edgemoe
path, memory, n_prompt, n_answer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
text = sys.stdin.read()
with edgemoe.load(path, memory=memory, ctx=n_prompt + n_answer) as engine:
    tokens = engine.tokenize(text)[:n_prompt]
    sampling = edgemoe.Sampling(temp=1.0, seed=1)
    n_past = 0
    while n_past < n_prompt + n_answer:  # a model that ends its answer begins another
        for _ in engine.generate(tokens, max_tokens=n_prompt + n_answer - len(tokens), sampling=sampling):
            pass
        n_past = engine.n_past
        tokens = tokens + [65] * (n_past + 1 - len(tokens))
        if len(tokens) >= n_prompt + n_answer:
            break
    stats = engine.stats()
    print(json.dumps({"n_past": engine.n_past, "peak": stats.peak_bytes, "evict": stats.n_evict,
                      "slots": stats.n_slot, "miss": stats.n_miss}))
"""


def budgets(path: Path, n_ctx: int, env: dict[str, str]) -> tuple[int, int]:
    """The smallest budget and the one in which every expert fits, for a fresh process: this one has grown by tests."""
    command = [sys.executable, "-m", "edgemoe", "plan", str(path), "--memory", "2GiB", "--ctx", str(n_ctx), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    plan = json.loads(done.stdout)
    return plan["smallest_bytes"] + _SLACK_BYTES, plan["resident_bytes"]


def run_limited(
    path: Path, text: str, budget: int, n_prompt: int, n_answer: int, env: dict[str, str]
) -> dict[str, int]:
    """One run of CHILD under a kernel limit equal to the budget. Skips where such a limit cannot be set."""
    result: dict[str, int] = limited(budget, CHILD, path, budget, n_prompt, n_answer, env=env, text=text)
    return result


def limited(budget: int, code: str, *arguments: object, env: dict[str, str], text: str = "") -> Any:
    """What a program prints as JSON under a kernel limit that it must keep. Skips where there can be none."""
    try:
        with memory_limit(budget, f"edgemoe-test-{time.monotonic_ns()}") as limit:
            child = subprocess.run(
                [sys.executable, "-c", code, *map(str, arguments)],
                input=text,
                capture_output=True,
                text=True,
                env=env,
                preexec_fn=limit.joiner(),
                check=False,
            )
            assert limit.n_kill() == 0
            assert child.returncode == 0, child.stderr
            peak = limit.peak_bytes()
            assert peak is None or peak <= budget
    except LimitUnavailable as error:
        pytest.skip(str(error))
    return json.loads(child.stdout)
