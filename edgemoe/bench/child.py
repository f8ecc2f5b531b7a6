"""One repetition of a benchmark, in this process: `python -m edgemoe.bench.child`, told what to do as JSON on stdin.

Loads, computes a first token, decodes a real text one given token at a time, clears the sequence and prefills. If told
to warm up, it prefills once before anything but load and first token is timed.
Prints one JSON line: the measurement, or {"error", "hint", "exit_code"}.
Imports little, since the memory limit covers it all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from .. import files
from ..errors import EdgeMoEError, UsageError
from .engines import ENGINES, BenchEngine, Setting


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it quietly; the parent speaks
    order = json.load(sys.stdin)
    try:
        answer = measure(order)
    except EdgeMoEError as error:
        answer = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
    print(json.dumps(answer), flush=True)
    # Unmapping gigabytes takes its time and measures nothing.
    os._exit(1 if "error" in answer else 0)


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """order: engine, setting (fields of Setting), text, warm, n_warmup, n_decode, n_prefill,
    spawned (time.monotonic()), trace (file for the decoded tokens, or None).
    """
    load_average = files.load_average()[0]
    begin = time.monotonic()
    engine: BenchEngine = ENGINES[order["engine"]](Setting.from_dict(order["setting"]))
    load_s = time.monotonic() - begin
    tokens = _tokens(engine, order)
    if order["trace"]:
        engine.trace(order["trace"])
    engine.append(tokens[:1])
    first_token_s = time.monotonic() - order["spawned"]
    if order["warm"]:
        _prefill(engine, tokens, order)
        engine.append(tokens[:1])

    n_warmup, n_decode = order["n_warmup"], order["n_decode"]
    for token in tokens[1 : 1 + n_warmup]:
        engine.append([token])
    before = _totals(engine)
    token_s = []
    for token in tokens[1 + n_warmup : 1 + n_warmup + n_decode]:
        begin = time.monotonic()
        engine.append([token])
        token_s.append(round(time.monotonic() - begin, 6))
    decode = _difference(before, _totals(engine))
    if order["trace"]:
        engine.trace(None)

    before = _totals(engine)
    prefill_s = _prefill(engine, tokens, order)
    return {
        "load_average": load_average,
        "load_s": load_s,
        "first_token_s": first_token_s,
        "token_s": token_s,
        "decode": decode,
        "prefill_s": prefill_s,
        "prefill": _difference(before, _totals(engine)),
        "facts": engine.facts(),
        "peak_rss_bytes": _peak_rss_bytes(),
    }


def _prefill(engine: BenchEngine, tokens: list[int], order: dict[str, Any]) -> float:
    """Seconds of a prefill into an empty sequence, which is empty again afterwards."""
    engine.clear()
    begin = time.monotonic()
    if order["n_prefill"]:
        engine.append(tokens[: order["n_prefill"]])
    seconds = time.monotonic() - begin
    engine.clear()
    return seconds


def _tokens(engine: BenchEngine, order: dict[str, Any]) -> list[int]:
    tokens = engine.tokenize(order["text"])
    needed = max(1 + order["n_warmup"] + order["n_decode"], order["n_prefill"])
    if len(tokens) < needed:
        raise UsageError(
            f"the text has {len(tokens)} tokens, the benchmark needs {needed}",
            hint="give a longer `--text`, or a smaller `--decode` or `--prefill`",
        )
    return tokens


def _totals(engine: BenchEngine) -> dict[str, int]:
    """The engine's counters, and the bytes that the kernel read from the drive for this process (page faults too)."""
    totals = engine.counters()
    for line in _proc_lines("/proc/self/io"):
        if line.startswith("read_bytes: "):
            totals["drive_bytes"] = int(line.split()[1])
    return totals


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def _peak_rss_bytes() -> int:
    for line in _proc_lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _proc_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # not Linux, or not permitted
        return []


if __name__ == "__main__":
    main()
