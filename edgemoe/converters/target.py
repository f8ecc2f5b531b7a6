"""The plan of a new file: which tensors in which order, where their rows come from, what the metadata says.

Layout (docs/format.md): dense tensors first; then, layer by layer, expert by expert, the matrices in the order in which
llama.cpp multiplies by them, each a tensor, each beginning at a multiple of 4096 bytes. One read brings an expert.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from . import gguf_header
from .compensate import Factor
from .from_gguf import expert_name
from .ggml import Floats, bits, row_bytes
from .gguf_header import FLOAT32, Value, encode
from .source import ROLES, Key, Rows, Source
from .types import Types

FORMAT_VERSION = 1
EXPERT_ALIGNMENT = 4096
NO_DIGEST = "0" * 64

Importance = Callable[[Key, int], Floats | None]
"""Of (matrix, expert): one weight a column, or None."""
Factors = Callable[[Key, int], Factor | None]
"""Of (matrix, expert): how its rounding errors are made good, or None."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a tensor from one place: one unit of work. name: of the matrix in a file of ours.
    factor: for compensated rounding; made when the part's turn comes.
    """

    name: str
    rows: Rows
    importance: Floats | None = None
    factor: Callable[[], Factor | None] | None = None


MakePart = Callable[[Key, int, Rows], Part]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the new file. ne: ggml's order."""

    name: str
    ne: tuple[int, ...]
    type: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Target:
    """A file to write. `digest` replaces NO_DIGEST in the header when the source has been read."""

    values: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def header(self, digest: str = NO_DIGEST) -> bytes:
        """The file's bytes before the data; as long for every digest."""
        values = {**self.values, "edgemoe.source.sha256": encode(digest)}
        return gguf_header.build(values, [(t.name, t.ne, t.type) for t in self.tensors], self.alignment)

    def offsets(self) -> tuple[list[int], int]:
        """Of each tensor from the beginning of the data, and the size of the data."""
        return gguf_header.place([(t.name, t.ne, t.type) for t in self.tensors], self.alignment)

    def fingerprint(self, source: Source) -> str:
        """Equal for equal work: the same source files, types, importance and metadata."""
        digest = hashlib.sha256(self.header())
        digest.update(json.dumps(source.files).encode())
        for tensor in self.tensors:
            for part in tensor.parts:
                if part.importance is not None:
                    digest.update(part.importance.tobytes())
        return digest.hexdigest()

    def bits_per_weight(self) -> float:
        """Of the whole file, without the padding."""
        n_bytes = sum(row_bytes(t.type, p.rows.n_col) * p.rows.n_row for t in self.tensors for p in t.parts)
        return 8 * n_bytes / sum(p.rows.n_row * p.rows.n_col for t in self.tensors for p in t.parts)


def make_target(
    source: Source,
    types: Types,
    *,
    stacked: bool = False,
    importance: Importance | None = None,
    factors: Factors | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Target:
    """Plan the file. factors: None rounds every weight by itself. stacked: as llama.cpp writes them, one type a matrix
    of a layer. Raises UsageError.
    """
    dense = [
        Tensor(tensor.name, tensor.ne, types.dense(tensor), (Part(tensor.name, tensor.rows),))
        for tensor in source.dense
    ]
    weigh = importance or (lambda key, expert: None)

    def part(key: Key, expert: int, rows: Rows) -> Part:
        factor = functools.partial(factors, key, expert) if factors else None
        return Part(expert_name(key, expert), rows, weigh(key, expert), factor)

    chosen = {
        key: tuple(types.expert(key, expert, rows) for expert, rows in enumerate(stack))
        for key, stack in source.experts.items()
    }
    experts = _stacked(source, chosen, part) if stacked else _single(source, chosen, part)
    alignment = gguf_header.ALIGNMENT if stacked else EXPERT_ALIGNMENT
    values = dict(source.values)
    values.pop("general.file_type", None)  # a guess at one type for all; readers guess as well without it
    values["general.quantization_version"] = encode(2)
    if not stacked:
        values["general.alignment"] = encode(alignment)
        values["edgemoe.format.version"] = encode(FORMAT_VERSION)
    each, mean = _expert_bits(source, chosen)
    values["edgemoe.expert.bits_per_weight"] = encode(float(mean))
    values["edgemoe.expert.bits"] = encode(each, FLOAT32)
    values["edgemoe.source.name"] = encode(source.path.resolve().name)
    values["edgemoe.source.kind"] = encode("gguf" if source.is_gguf else "safetensors")
    values["edgemoe.source.sha256"] = encode(NO_DIGEST)
    if facts:
        values["edgemoe.facts"] = encode(json.dumps(facts, sort_keys=True, ensure_ascii=False))
    return Target(values, (*dense, *experts), alignment, {"expert_bits": mean})


def layers_of(source: Source) -> list[tuple[int, str]]:
    """(block, family) of the layers with experts, in order."""
    return sorted({key[:2] for key in source.experts})


def _single(source: Source, chosen: Mapping[Key, tuple[str, ...]], part: MakePart) -> list[Tensor]:
    out = []
    for layer, family in layers_of(source):
        keys = [(layer, family, role) for role in ROLES if (layer, family, role) in source.experts]
        for expert in range(len(source.experts[keys[0]])):
            for key in keys:
                rows = source.experts[key][expert]
                made = part(key, expert, rows)
                out.append(Tensor(made.name, (rows.n_col, rows.n_row), chosen[key][expert], (made,)))
    return out


def _stacked(source: Source, chosen: Mapping[Key, tuple[str, ...]], part: MakePart) -> list[Tensor]:
    out = []
    for layer, family in layers_of(source):
        for role in ROLES:
            key = (layer, family, role)
            if key not in source.experts:
                continue
            stack = source.experts[key]
            if len(set(chosen[key])) > 1:
                raise UsageError(
                    f"`{expert_name(key)}` has experts of the types {', '.join(sorted(set(chosen[key])))}",
                    hint="`--uniform-per-layer` needs one type for a matrix of a layer: give `--type`, or `--bits`",
                )
            parts = tuple(part(key, expert, rows) for expert, rows in enumerate(stack))
            ne = (stack[0].n_col, stack[0].n_row, len(stack))
            out.append(Tensor(expert_name(key), ne, chosen[key][0], parts))
    return out


def _expert_bits(source: Source, chosen: Mapping[Key, tuple[str, ...]]) -> tuple[list[float], float]:
    """Mean bits a weight of each expert, layer after layer, and of all of them."""
    each, total_bits, total = [], 0.0, 0
    for layer, family in layers_of(source):
        keys = [(layer, family, role) for role in ROLES if (layer, family, role) in source.experts]
        for expert in range(len(source.experts[keys[0]])):
            sizes = [source.experts[key][expert].n_row * source.experts[key][expert].n_col for key in keys]
            used = sum(n * bits(chosen[key][expert]) for n, key in zip(sizes, keys, strict=True))
            each.append(used / sum(sizes))
            total_bits, total = total_bits + used, total + sum(sizes)
    return each, total_bits / total
