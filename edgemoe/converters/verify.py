"""Checks a finished file against its source: every tensor, every byte.

Rows that were copied are compared as they are. Rows that were quantized are quantized again and compared byte for byte
(the quantizers are deterministic), and what they stand for is compared with the source's values.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import FormatError
from . import gguf_header, work
from .ggml import Bytes, Floats, dequantize
from .gguf_header import Header, decode
from .source import Source, SourceFile
from .target import Target


@dataclass
class Check:
    """What a verification found. errors: by type, relative root mean square of (file - source) over all its weights."""

    n_tensor: int = 0
    n_bytes: int = 0
    errors: dict[str, float] = field(default_factory=dict)


def check_header(path: Path, header: Header, target: Target) -> None:
    """Raises FormatError when the file does not have the tensors, places and metadata that it should have."""
    found = [(tensor.name, tensor.ne, tensor.type) for tensor in header.tensors]
    wanted = [(tensor.name, tensor.ne, tensor.type) for tensor in target.tensors]
    for have, want in zip(found, wanted, strict=False):
        if have != want:
            raise FormatError(f"`{path}` has {_said(have)} where {_said(want)} should be")
    if len(found) != len(wanted):
        raise FormatError(f"`{path}` has {len(found)} tensors, {len(wanted)} were due")
    if header.alignment != target.alignment:
        raise FormatError(f"`{path}` is aligned to {header.alignment} bytes, not to {target.alignment}")
    for key, value in target.values.items():
        if not key.startswith("edgemoe.") and header.values.get(key) != value:
            raise FormatError(f"`{path}` and its source differ in `{key}`")


def _said(tensor: tuple[str, tuple[int, ...], str]) -> str:
    name, ne, kind = tensor
    return f"`{name}` ({kind}, {' x '.join(map(str, ne))})"


def check_data(
    path: Path,
    header: Header,
    source: Source,
    target: Target,
    n_worker: int,
    progress: Callable[[int], None],
) -> Check:
    """Compare all data. Raises FormatError at the first difference."""
    file, lock, check = SourceFile(path), threading.Lock(), Check(n_tensor=len(target.tensors))
    base = header.tensors[0].offset  # the first tensor begins the data
    jobs, sums, digests = work.jobs_of(target), dict[str, list[float]](), dict[int, str]()

    def take(job: work.Job, offset: int, data: Bytes, values: Floats | None) -> None:
        stored = file.read(base + offset, data.nbytes).reshape(data.shape)
        file.drop(base + offset, data.nbytes)
        if not np.array_equal(stored, data):
            row = int(np.argmax((stored != data).any(axis=1))) + (offset - job.offset) // data.shape[1]
            raise FormatError(
                f"`{path}`: row {row} of `{job.part.name}` is not what its source becomes",
                hint="the file is damaged, or was made with another calibration or another version",
            )
        pair = None if values is None else _squares(stored, job.tensor.type, values)
        with lock:
            check.n_bytes += data.nbytes
            if pair is not None:
                total = sums.setdefault(job.tensor.type, [0.0, 0.0])
                total[0], total[1] = total[0] + pair[0], total[1] + pair[1]

    def done(job: work.Job, digest: str) -> None:
        with lock:
            digests[job.index] = digest
        progress(job.part.rows.n_row * job.part.rows.n_col)

    work.run(jobs, n_worker, take, done)
    check.errors = {kind: math.sqrt(error / max(power, 1e-300)) for kind, (error, power) in sorted(sums.items())}
    _check_bounds(path, check)
    digest = work.source_digest(jobs, [digests[i] for i in range(len(jobs))])
    if decode(header.values.get("edgemoe.source.sha256")) != digest:
        raise FormatError(f"`{path}` was made from another source: the hashes differ")
    return check


# Largest relative error of a type on weights that look random; real ones stay below. Two bits and less have no bound.
_BOUNDS = {"F16": 2e-3, "BF16": 4e-3, "Q8_0": 0.02, "Q6_K": 0.05, "Q5_K": 0.1, "Q5_1": 0.1, "Q5_0": 0.1}
_BOUND_4, _BOUND_3 = 0.25, 0.5


def _check_bounds(path: Path, check: Check) -> None:
    for kind, error in check.errors.items():
        bound = _BOUNDS.get(kind, _BOUND_4 if "4" in kind else _BOUND_3 if "3" in kind else math.inf)
        if not error <= bound:
            raise FormatError(f"`{path}`: weights in {kind} are off by {error:.3g} of their size, {bound:g} is normal")


def _squares(stored: Bytes, kind: str, values: Floats) -> tuple[float, float]:
    difference = dequantize(stored, kind, values.shape[1]) - values
    return float(np.vdot(difference, difference)), float(np.vdot(values, values))


def read_header(path: Path) -> Header:
    """The header of a finished file, checked further than any model's: tensors without gaps from the first on."""
    header = gguf_header.read(path)
    if not header.tensors:
        raise FormatError(f"`{path}` has no tensors")
    return header
