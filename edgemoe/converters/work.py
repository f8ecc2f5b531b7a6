"""The work of a conversion and of its verification: parts of tensors, each read, converted, handed on, on all cores.

A part is one matrix of one expert, or a dense tensor. A worker takes it through a few rows at a time, so that what is
in memory does not depend on the size of a tensor: a few megabytes a worker, and the budget decides how many workers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import FormatError, NativeError, UsageError
from ..units import MIB, format_exact, format_size
from . import compensate
from .compensate import Factor, factor_bytes
from .ggml import PLAIN, Bytes, Floats, dequantize, quantize, row_bytes
from .target import Part, Target, Tensor

CHUNK_WEIGHTS = 2 << 20  # weights that a worker has at once: 8 MiB as float32
_MOST_IN_HALVES = 65504.0
_WIDE = ("F32", "BF16")  # hold whatever float32 does
_SLACK = 48 * MIB  # allocator, threads, what Python makes in passing


@dataclass(frozen=True)
class Job:
    """A part, and where its rows go. index: of all parts of the target, in the file's order."""

    index: int
    tensor: Tensor
    part: Part
    offset: int  # from the beginning of the data


Take = Callable[[Job, int, Bytes, Floats | None], None]
"""Receives finished rows: their offset from the beginning of the data, their bytes, and their values if they were
converted and not copied."""
Done = Callable[[Job, str], None]
"""Receives a finished part and the SHA-256 of what was read for it."""


def jobs_of(target: Target) -> list[Job]:
    """All parts of the target in the file's order."""
    offsets, _ = target.offsets()
    jobs: list[Job] = []
    for tensor, at in zip(target.tensors, offsets, strict=True):
        for part in tensor.parts:
            jobs.append(Job(len(jobs), tensor, part, at))
            at += part.rows.n_row * row_bytes(tensor.type, part.rows.n_col)
    return jobs


def source_digest(jobs: Sequence[Job], digests: Sequence[str]) -> str:
    """Of everything that was read, whatever the new file's types and layout: equal for equal sources."""
    lines = sorted(f"{job.part.name} {digest}" for job, digest in zip(jobs, digests, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def workers_for(jobs: Sequence[Job], memory: int, n_thread: int, held: int) -> int:
    """How many workers fit beside the `held` bytes of the process. Raises UsageError when not one does."""
    largest = max((_job_bytes(job) for job in jobs), default=0)
    room = memory - held - _SLACK
    if room < largest:
        smallest = held + _SLACK + largest
        raise UsageError(
            f"a memory budget of {format_size(memory)} is too small for this conversion",
            hint=f"the smallest that works is `--memory {format_exact(smallest)}`",
        )
    return max(1, min(n_thread, room // max(1, largest)))


def _chunk_rows(job: Job) -> int:
    rows = job.part.rows
    return rows.n_row if rows.whole_bytes else max(1, CHUNK_WEIGHTS // rows.n_col)


def _job_bytes(job: Job) -> int:
    rows = job.part.rows
    n = min(rows.n_row, _chunk_rows(job))
    return (
        rows.whole_bytes
        + (factor_bytes(rows.n_col) if _compensated(job) else 0)
        + n * (2 * row_bytes(rows.type, rows.n_col) + 4 * rows.n_col)
        + n * row_bytes(job.tensor.type, rows.n_col)
    )


def _compensated(job: Job) -> bool:
    return job.part.factor is not None and job.tensor.type not in (*PLAIN, job.part.rows.type)


def run(jobs: Sequence[Job], n_worker: int, take: Take, done: Done) -> None:
    """Do all jobs. The first error of any worker stops the others and is raised."""
    todo, lock, failed = iter(jobs), threading.Lock(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        while not failed.is_set():
            with lock:
                job = next(todo, None)
            if job is None:
                return
            try:
                done(job, _convert(job, take, failed))
            except _Stopped:
                return
            except BaseException as error:
                errors.append(error)
                failed.set()

    threads = [threading.Thread(target=work, name=f"convert-{i}", daemon=True) for i in range(n_worker)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # so that Ctrl-C is heard
    except BaseException:
        failed.set()
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]


class _Stopped(Exception):
    """Another worker failed, or the user pressed Ctrl-C."""


def _convert(job: Job, take: Take, stop: threading.Event) -> str:
    rows, kind = job.part.rows, job.tensor.type
    stride, step = row_bytes(kind, rows.n_col), _chunk_rows(job)
    digest = hashlib.sha256()
    factor = job.part.factor() if _compensated(job) and job.part.factor else None
    for begin in range(0, rows.n_row, step):
        if stop.is_set():
            raise _Stopped
        raw = rows.load(begin, min(rows.n_row, begin + step))
        digest.update(np.ascontiguousarray(raw).data)
        at = job.offset + begin * stride
        if kind == rows.type:
            take(job, at, np.ascontiguousarray(raw), None)
            continue
        values = dequantize(raw, rows.type, rows.n_col)
        # ggml's quantizers end the process when they meet what is no number.
        if not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise FormatError(f"`{job.part.name}` holds a value that is not a finite number")
        # Scales of blocks are halves: what is larger would be written as infinity, and read as no number.
        largest = max(values.max(), -values.min())
        if largest > _MOST_IN_HALVES and kind not in _WIDE:
            raise FormatError(
                f"`{job.part.name}` holds the value {largest:g}, which {kind} cannot hold",
                hint="keep it in `F32` or `BF16`; the checkpoint may be damaged",
            )
        take(job, at, _rounded(job, values, factor), values)
    return digest.hexdigest()


def _rounded(job: Job, values: Floats, factor: Factor | None) -> Bytes:
    if factor is None:
        return quantize(values, job.tensor.type, job.part.importance)
    try:
        return compensate.quantize(values, job.tensor.type, factor, job.part.importance)
    except NativeError as error:
        raise FormatError(
            f"`{job.part.name}` cannot be rounded with its errors compensated: {error.message}",
            hint="a calibration made without `--moments` rounds each weight by itself",
        ) from None
