"""A conversion from beginning to end: source, types, plan, work, file. All is checked before anything is written."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _native
from ..errors import FormatError, StorageError, UsageError
from ..units import GIB, parse_size
from . import verify, work
from .allocation import Allocation
from .from_gguf import check_layers, open_gguf
from .ggml import target_type
from .gguf_header import Header, decode
from .output import Output
from .source import Source
from .target import Factors, Importance, Target, make_target
from .types import AskedTypes, FileTypes, Types

DEFAULT_MEMORY = 2 * GIB
COMPENSATED = "compensated"
"""Of a file's facts: tokens of the sample by which its experts' rounding errors were made good."""

Progress = Callable[[str, int, int], None]
"""Receives (what is done now, weights done, weights in all), from any thread, one at a time."""


@dataclass(frozen=True)
class Report:
    """What a conversion did. n_resumed: parts that an earlier, interrupted conversion had finished."""

    path: Path
    file_bytes: int
    n_tensor: int
    expert_bits: float
    bits: float
    n_resumed: int = 0
    check: verify.Check | None = None
    types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to convert; the meaning of each is that of the command's option of the same name."""

    type_name: str | None = None
    allocation: Allocation | None = None
    importance: Importance | None = None
    factors: Factors | None = None
    facts: Mapping[str, Any] | None = None
    uniform_per_layer: bool = False
    dense_type: str | None = None
    memory: str | int | None = None
    threads: int | None = None
    pre_tokenizer: str | None = None
    overwrite: bool = False


def open_source(path: Path, *, pre_tokenizer: str | None = None) -> Source:
    """The model at a path: a GGUF file, or the folder of a Hugging Face checkpoint."""
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint="give a GGUF file, or the folder of a checkpoint")
    if path.is_dir():
        from .from_safetensors import open_checkpoint

        source = open_checkpoint(path, pre_tokenizer=pre_tokenizer)
    else:
        source = open_gguf(path)
    check_layers(source)
    return source


def convert(source: Source, out: Path, options: Options, *, progress: Progress | None = None) -> Report:
    """Write `out`. Raises UsageError, UnsupportedError, FormatError, StorageError; then there is no `out`."""
    _check_out(source, out, overwrite=options.overwrite)
    target = make_target(
        source,
        _types(source, options),
        stacked=options.uniform_per_layer,
        importance=options.importance,
        factors=options.factors,
        facts=options.facts,
    )
    jobs = work.jobs_of(target)
    n_worker = work.workers_for(jobs, _memory(options), _threads(options), held_bytes())
    _, data_bytes = target.offsets()
    header_bytes, fingerprint = len(target.header()), target.fingerprint(source)
    with Output(out, fingerprint, len(jobs), header_bytes, data_bytes, overwrite=options.overwrite) as output:
        told = _Told(progress, "converting", source.n_weight)
        resumed = dict(output.finished)
        told.add(sum(_weights(job) for job in jobs if job.index in resumed))

        def done(job: work.Job, digest: str) -> None:
            output.finish(job.index, digest)
            told.add(_weights(job))

        try:
            todo = [job for job in jobs if job.index not in resumed]
            work.run(todo, n_worker, lambda job, offset, data, values: output.write(offset, data), done)
            check_unchanged(source)
        except FormatError:
            output.discard()
            raise
        digest = work.source_digest(jobs, [output.digests[i] for i in range(len(jobs))])
        output.publish(target.header(digest))
    return _report(out, target, n_resumed=len(resumed), file_bytes=header_bytes + data_bytes)


def verify_file(source: Source, out: Path, options: Options, *, progress: Progress | None = None) -> Report:
    """Compare a finished file with its source. Raises FormatError at the first difference."""
    header = verify.read_header(out)
    stacked = "edgemoe.format.version" not in header.values
    factors = options.factors if _is_compensated(header) else None  # as the file was made
    target = make_target(source, FileTypes(header), stacked=stacked, importance=options.importance, factors=factors)
    verify.check_header(out, header, target)
    n_worker = work.workers_for(work.jobs_of(target), _memory(options), _threads(options), held_bytes())
    told = _Told(progress, "verifying", source.n_weight)
    check = verify.check_data(out, header, source, target, n_worker, told.add)
    return _report(out, target, check=check, file_bytes=header.file_bytes)


def _is_compensated(header: Header) -> bool:
    try:
        return COMPENSATED in json.loads(str(decode(header.values["edgemoe.facts"])))
    except (KeyError, ValueError, TypeError, RecursionError):
        return False


class _Told:
    """Adds up what is done and tells it, one thread at a time."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0
        self._lock = threading.Lock()

    def add(self, n: int) -> None:
        if self._progress is None:
            return
        with self._lock:
            self._done += n
            self._progress(self._what, self._done, self._total)


def _types(source: Source, options: Options) -> Types:
    return AskedTypes(
        keep=source.is_gguf,
        expert_type=target_type(options.type_name) if options.type_name else None,
        allocation=options.allocation,
        dense_type=target_type(options.dense_type) if options.dense_type else None,
        patterns=options.allocation.dense if options.allocation else {},
    )


def _check_out(source: Source, out: Path, *, overwrite: bool) -> None:
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint="give the name of the file to write")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder `{out.parent}`", hint="make it first")
    if any(os.path.realpath(out) == name for name, _, _ in source.files):
        raise UsageError(f"`{out}` is the source", hint="choose another name")
    if out.exists() and not overwrite:
        raise UsageError(f"`{out}` exists", hint="choose another name, or add `--overwrite`")


def check_unchanged(source: Source) -> None:
    """Raises StorageError when a file of the source is not what it was when it was opened."""
    for name, size, modified in source.files:
        try:
            status = os.stat(name)
        except OSError as error:
            raise StorageError(f"cannot read `{name}`: {error.strerror}") from None
        if (status.st_size, status.st_mtime_ns) != (size, modified):
            raise StorageError(f"`{name}` has changed while it was converted", hint="start again")


def _memory(options: Options) -> int:
    return DEFAULT_MEMORY if options.memory is None else parse_size(options.memory)


def _threads(options: Options) -> int:
    return cores() if options.threads is None else options.threads


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def held_bytes() -> int:
    """The most that the process has held so far: more than it holds now, never less."""
    return _native.memory()["peak_bytes"]


def _weights(job: work.Job) -> int:
    return job.part.rows.n_row * job.part.rows.n_col


def _report(
    out: Path, target: Target, *, file_bytes: int, n_resumed: int = 0, check: verify.Check | None = None
) -> Report:
    types: dict[str, int] = {}
    for tensor in target.tensors:
        types[tensor.type] = types.get(tensor.type, 0) + len(tensor.parts)
    return Report(
        out, file_bytes, len(target.tensors), target.facts["expert_bits"], target.bits_per_weight(), n_resumed, check,
        types,
    )  # fmt: skip
