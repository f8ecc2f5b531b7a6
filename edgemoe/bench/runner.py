"""The parent of a benchmark: fresh children under a kernel memory limit, caches dropped before each, A B A B."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import EdgeMoEError, StorageError, UsageError
from .engines import Setting
from .limit import LimitUnavailable, drop_page_cache, memory_limit

CHILD_TIMEOUT_S = 3600
_CHARS_PER_TOKEN = 16  # more than any text takes; the rest of it need not be in a child's memory

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What one repetition computes, in tokens.

    n_warmup: decoded before timing begins. n_stock_decode: llama.cpp's share of n_decode, the first ones.
    warm: prefill once before timing, so that caches are as full as they get.
    """

    text: str
    n_warmup: int
    n_decode: int
    n_prefill: int
    n_stock_decode: int
    warm: bool

    @property
    def n_token(self) -> int:
        """Tokens of the text that are used."""
        return max(1 + self.n_warmup + self.n_decode, self.n_prefill)

    @property
    def n_ctx(self) -> int:
        """A context that holds them, in steps of 256."""
        return -(-self.n_token // 256) * 256


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the things compared. limit_bytes: of the kernel, 0 for none."""

    name: str
    engine: str
    setting: Setting
    limit_bytes: int
    n_decode: int


def passage() -> str:
    """The bundled text: the beginning of a State of the Union address (1791, public domain), 8 kB."""
    return (Path(__file__).parent / "passage.txt").read_text("utf-8")


def read_text(path: str) -> str:
    """A text file for the workload. Raises UsageError."""
    try:
        return Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the text `{path}`: {reason}", hint="give a plain text file") from None


def interleave(sides: Sequence[Side], n_repeat: int) -> list[tuple[int, Side]]:
    """A B B A …: what drifts during a benchmark then drifts for all sides."""
    turns = []
    for repetition in range(n_repeat):
        # Every other round backwards: who runs after whom shall not matter.
        turns += [(repetition, side) for side in (sides if repetition % 2 == 0 else sides[::-1])]
    return turns


def run_all(
    sides: Sequence[Side], workload: Workload, files: Sequence[Path], n_repeat: int, say: Say
) -> list[dict[str, Any]]:
    """Every repetition of every side, as records in the order in which they ran. Raises EdgeMoEError."""
    records = []
    for repetition, side in interleave(sides, n_repeat):
        record = run_once(side, workload, files)
        records.append({"side": side.name, "repetition": repetition, **record})
        say(f"{side.name} {repetition + 1}/{n_repeat}: {glance(record)}")
    return records


def run_once(side: Side, workload: Workload, files: Sequence[Path], *, trace: str | None = None) -> dict[str, Any]:
    """One repetition of one side in a child process of its own. trace: a file for what the engine did in decode."""
    dropped = drop_page_cache(files)
    order = {
        "engine": side.engine,
        "setting": side.setting.to_dict(),
        "text": workload.text[: workload.n_token * _CHARS_PER_TOKEN],
        "warm": workload.warm,
        "n_warmup": workload.n_warmup,
        "n_decode": side.n_decode,
        "n_prefill": workload.n_prefill,
        "trace": trace,
        "spawned": time.monotonic(),
    }
    with contextlib.ExitStack() as stack:
        limit = None
        if side.limit_bytes:
            with contextlib.suppress(LimitUnavailable):  # said once, by who calls: see limit_problem
                limit = stack.enter_context(memory_limit(side.limit_bytes, f"edgemoe-bench.{os.getpid()}"))
        others = _OtherWork()
        try:
            child = subprocess.run(
                [sys.executable, "-m", "edgemoe.bench.child"],
                input=json.dumps(order).encode(),
                stdout=subprocess.PIPE,
                timeout=CHILD_TIMEOUT_S,
                preexec_fn=limit.joiner() if limit else None,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EdgeMoEError(
                f"{side.name} took more than {CHILD_TIMEOUT_S} s",
                hint="decode fewer tokens: `--stock-decode`, `--decode`",
            ) from None
        other_cores = others.cores()
        n_kill = limit.n_kill() if limit else 0
        peak = limit.peak_bytes() if limit else None
    limit_bytes = limit.limit_bytes if limit else 0
    answer = _answer(side, child, n_kill)
    return {
        **answer,
        "cache_dropped": dropped,
        "limit_bytes": limit_bytes,
        "limit_peak_bytes": peak,
        "other_cores": other_cores,
    }


class _OtherWork:
    """How many cores other processes kept busy since this was made: what spoils a measurement. 0 off Linux."""

    def __init__(self) -> None:
        self._begin = self._now()

    def cores(self) -> float:
        """Mean since the beginning; children must have ended."""
        time_s, busy_s, own_s = (now - before for now, before in zip(self._now(), self._begin, strict=True))
        return round(max(0.0, busy_s - own_s) / time_s, 2)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return time.monotonic(), own_s, own_s
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
        return time.monotonic(), (user + nice + system + irq + softirq + steal) / files.ticks_per_s(), own_s


def _answer(side: Side, child: subprocess.CompletedProcess[bytes], n_kill: int) -> dict[str, Any]:
    if n_kill:
        raise StorageError(
            f"the kernel killed {side.name} at its limit of {side.limit_bytes} bytes",
            hint="use a larger `--memory`; if the killed side is edgemoe, this is a bug: please report it",
        )
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        raise EdgeMoEError(f"{side.name} ended with status {child.returncode} and no result") from None
    if "error" in answer:
        kind = UsageError if answer["exit_code"] == UsageError.exit_code else EdgeMoEError
        raise kind(f"{side.name}: {answer['error']}", hint=answer["hint"])
    return answer


def limit_problem(limit_bytes: int) -> str:
    """Why a limit cannot be enforced here; "" when it can."""
    try:
        with memory_limit(limit_bytes, f"edgemoe-probe.{os.getpid()}"):
            return ""
    except LimitUnavailable as error:
        return str(error)


def git_revision() -> str:
    """Commit of the checkout that this package runs from, "-dirty" if it has changes; "" outside one."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return described.stdout.strip()


def glance(record: dict[str, Any]) -> str:
    """The speeds of one repetition in a few words."""
    parts = [f"first token {record['first_token_s']:.1f} s"]
    if record["token_s"]:
        parts.append(f"decode {len(record['token_s']) / sum(record['token_s']):.2f} tok/s")
    if record["prefill_s"]:
        parts.append(f"prefill {record['prefill_s']:.1f} s")
    return ", ".join(parts)
