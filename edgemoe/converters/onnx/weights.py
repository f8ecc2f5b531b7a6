"""The numbers of an export: rows read from the source a few at a time, quantized, written where the graph says."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import FormatError, StorageError, UsageError
from ...files import open_fd, write_at
from ...units import MIB, format_exact, format_size
from .. import ggml
from ..ggml import Floats
from ..source import DenseTensor, Rows, Source
from ..target import Importance
from .geometry import straight
from .graph import DENSE_BLOCK, Blob, Graph, Group
from .quantize import quantize

CHUNK_WEIGHTS = 512 * 1024
_WORK_BYTES = 48  # a weight of a chunk takes while its scales are searched
_SLACK = 64 * MIB

Array = npt.NDArray[np.generic]


class Files:
    """The external files of an export, written at given places by several threads."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self._folder = folder
        self._fds: dict[str, int] = {}
        for name, size in sizes.items():
            try:
                self._fds[name] = open_fd(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                os.ftruncate(self._fds[name], size)
            except OSError as error:
                raise self._failed(name, error) from None

    def write(self, blob: Blob, at: int, values: Array) -> None:
        """values at byte `at` of a tensor."""
        view = np.ascontiguousarray(values).data.cast("B")
        if at + len(view) > blob.n_bytes:
            raise AssertionError(f"{blob.name}: {at + len(view)} of {blob.n_bytes} bytes")
        try:
            write_at(self._fds[blob.file], view, blob.offset + at)
        except OSError as error:
            raise self._failed(blob.file, error) from None

    def sync(self) -> None:
        """On the disk, all of it. Raises StorageError."""
        for name, fd in self._fds.items():
            try:
                os.fsync(fd)
            except OSError as error:
                raise self._failed(name, error) from None

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _failed(self, name: str, error: OSError) -> StorageError:
        return StorageError(f"cannot write `{self._folder / name}`: {error.strerror}")


@dataclass(frozen=True)
class Job:
    """One matrix, or the pair of gate and up. n_weight: for the progress. held: what it takes beside its chunks."""

    n_weight: int
    held: int
    do: Callable[[Files], None]


def jobs_of(graph: Graph, source: Source, dense: Mapping[str, int], importance: Importance | None) -> Iterator[Job]:
    """All work of an export."""
    geometry = graph.geometry
    for tensor in source.dense:
        yield _dense_job(graph, tensor, straight(tensor, geometry), dense.get(tensor.name, 32))
    yield Job(0, 0, lambda files: _angles(graph, files))
    for group in graph.groups:
        for place, expert in enumerate(group.experts):
            for matrix, roles in (("gate_up", ("gate", "up")), ("down", ("down",))):
                keys = [(group.layer, "exps", role) for role in roles]
                rows = [source.experts[key][expert] for key in keys]
                weigh = [importance(key, expert) if importance else None for key in keys]
                yield _expert_job(graph, group, place, matrix, rows, weigh)


_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "attn.q_proj",
    "attn_k": "attn.k_proj", "attn_v": "attn.v_proj", "attn_output": "attn.o_proj", "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm", "ffn_gate_inp": "moe.router",
}  # fmt: skip
_WHOLE = {"token_embd.weight": "model.embed_tokens", "output.weight": "lm_head", "output_norm.weight": "model.norm"}


def onnx_name(name: str) -> str:
    """A dense tensor's name in the graph, without its last part."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_NAMES[part]}"


def _dense_job(graph: Graph, tensor: DenseTensor, rows: Rows, bits: int) -> Job:
    name = onnx_name(tensor.name)
    n_weight = rows.n_row * rows.n_col

    def quantized(files: Files) -> None:
        codes, scales = graph.blobs[f"{name}.qweight"], graph.blobs[f"{name}.scales"]
        for begin, values in _chunks(rows, tensor.name):
            packed, scale = quantize(values, bits, DENSE_BLOCK, half_scales=False)
            files.write(codes, begin * packed.shape[1], packed)
            files.write(scales, begin * scale.shape[1] * 4, scale)

    def plain(files: Files) -> None:
        values = np.concatenate([part for _, part in _chunks(rows, tensor.name)])
        if f"{name}.table" in graph.blobs:
            files.write(graph.blobs[f"{name}.table"], 0, values)
        if f"{name}.weight" in graph.blobs:
            files.write(graph.blobs[f"{name}.weight"], 0, values.T if len(tensor.ne) > 1 else values)

    if f"{name}.qweight" in graph.blobs:
        return Job(n_weight, rows.whole_bytes, quantized)
    return Job(n_weight, rows.whole_bytes + 12 * n_weight, plain)


def _expert_job(
    graph: Graph, group: Group, place: int, matrix: str, rows: Sequence[Rows], weigh: Sequence[Floats | None]
) -> Job:
    codes, scales = graph.blobs[group.name(matrix, "qweight")], graph.blobs[group.name(matrix, "scales")]
    n_weight = sum(part.n_row * part.n_col for part in rows)

    def do(files: Files) -> None:
        at_codes, at_scales = place * codes.n_bytes // codes.dims[0], place * scales.n_bytes // scales.dims[0]
        parts = [_chunks(part, group.name(matrix, "qweight")) for part in rows]
        for chunk in zip(*parts, strict=True):
            found = [
                quantize(values, group.bits, graph.expert_block, weight)
                for (_, values), weight in zip(chunk, weigh, strict=True)
            ]
            packed, scale = (_interleaved([pair[i] for pair in found]) for i in (0, 1))
            files.write(codes, at_codes, packed)
            files.write(scales, at_scales, scale)
            at_codes, at_scales = at_codes + packed.nbytes, at_scales + scale.nbytes

    return Job(n_weight, max(part.whole_bytes for part in rows), do)


def _interleaved(parts: list[Array]) -> Array:
    """Rows in turn: gate 0, up 0, gate 1, ... as QMoE's swiglu wants them."""
    return parts[0] if len(parts) == 1 else np.stack(parts, 1).reshape(-1, parts[0].shape[1])


def _chunks(rows: Rows, name: str) -> Iterator[tuple[int, Floats]]:
    step = rows.n_row if rows.whole_bytes else max(1, CHUNK_WEIGHTS // rows.n_col)
    for begin in range(0, rows.n_row, step):
        raw = rows.load(begin, min(rows.n_row, begin + step))
        values = ggml.dequantize(raw, rows.type, rows.n_col)
        if not (np.isfinite(values.max()) and np.isfinite(values.min())):
            raise FormatError(f"`{name}` holds a value that is not a finite number")
        yield begin, values


def _angles(graph: Graph, files: Files) -> None:
    g = graph.geometry
    turn = g.rope_base ** -(np.arange(0, g.head_dim, 2, dtype=np.float64) / g.head_dim)
    for begin in range(0, g.n_ctx, 4096):
        at = np.arange(begin, min(g.n_ctx, begin + 4096))[:, None] * turn
        for name, values in (("cos_cache", np.cos(at)), ("sin_cache", np.sin(at))):
            files.write(graph.blobs[name], begin * at.shape[1] * 4, values.astype(np.float32))


def run(jobs: Sequence[Job], files: Files, n_worker: int, done: Callable[[int], None]) -> None:
    """Do all of them. The first error stops the others and is raised."""
    stop = threading.Event()

    def do(job: Job) -> None:
        if not stop.is_set():
            job.do(files)
            done(job.n_weight)

    with ThreadPoolExecutor(n_worker, "convert") as pool:
        futures = [pool.submit(do, job) for job in jobs]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def workers_for(jobs: Sequence[Job], longest_row: int, memory: int, n_thread: int, held: int) -> int:
    """How many workers fit beside the `held` bytes of the process. Raises UsageError when not one does."""
    each = _WORK_BYTES * max(CHUNK_WEIGHTS, longest_row) + max(job.held for job in jobs)
    room = memory - held - _SLACK
    if room < each:
        raise UsageError(
            f"a memory budget of {format_size(memory)} is too small for this conversion",
            hint=f"the smallest that works is `--memory {format_exact(held + _SLACK + each)}`",
        )
    return max(1, min(n_thread, room // each))
