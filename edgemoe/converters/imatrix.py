"""Importance matrices of llama.cpp as calibrations: which columns of each expert's matrices matter, and nothing more.

`llama-imatrix` writes, for each matrix, sums of squares of what met each column, and how often. That weighs a
quantization. It does not say what a quantization costs an expert, nor how much the answer depends on it: choosing
types (`--bits`, `--size`) needs what `edgemoe calibrate` measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, UsageError
from . import calibration, imatrix_dat
from .calibration import Calibration, check_range, tensors_of, weights_of
from .ggml import Floats
from .gguf_header import Header, decode, decode_strings
from .source import Key, Source

_TENSOR = re.compile(r"blk\.(\d{1,6})\.ffn_(gate_up|gate|up|down)_exps\.weight\.(in_sum2|counts)")
_MAX_NAME = 256
KIND = "importance matrix of llama.cpp"


@dataclass(frozen=True)
class ImportanceMatrix:
    """columns: by block and role, [n_expert, n_col], mean squares. n_dense: matrices that are no routed experts."""

    columns: Mapping[tuple[int, str], Floats]
    n_token: int
    n_dense: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)

    def importance(self, key: Key, expert: int) -> Floats | None:
        """See `Calibration.importance`."""
        layer, family, role = key
        known = self.columns.get((layer, role)) if family == "exps" else None
        return None if known is None else weights_of(known[expert])


def load(path: Path, source: Source) -> Calibration | ImportanceMatrix:
    """What a file of `edgemoe calibrate` or of `llama-imatrix` holds. source: the model, since files of the old form do
    not say how many experts there are. Raises StorageError, FormatError.
    """
    if imatrix_dat.looks_like(path):
        n_experts = {(n, role): len(stack) for (n, family, role), stack in source.experts.items() if family == "exps"}
        entries = imatrix_dat.read(path, n_experts)
        _require_experts(path, entries.columns)
        return ImportanceMatrix(_both_forms(entries.columns), 0, entries.n_dense, {"kind": KIND})
    header = calibration.read_header(path)
    foreign = "edgemoe.calibration.version" not in header.values
    if foreign and (
        decode(header.values.get("general.type")) == "imatrix" or any(k.startswith("imatrix.") for k in header.values)
    ):
        return _parse(header)
    return calibration.parse(header)


def notes(known: Calibration | ImportanceMatrix, lacking: Sequence[int]) -> list[str]:
    """What the person should know of the use that is made of it. lacking: blocks that it does not know."""
    found = []
    if isinstance(known, ImportanceMatrix):
        found.append(
            "an importance matrix of llama.cpp: it weighs the columns of the experts' matrices, no more; types are not "
            "chosen by it (no errors, no sensitivities, no Super Experts), and rounding errors are not compensated"
        )
        if known.n_dense:
            found.append(f"what it says of {known.n_dense} other matrices is not used: those are quantized without it")
    if lacking:
        blocks = ", ".join(map(str, lacking))
        found.append(f"it knows nothing of the experts of block {blocks}: they are quantized without it")
    return found


def require_errors(known: Calibration | ImportanceMatrix, path: Path, option: str) -> Calibration:
    """The calibration for who chooses types by it. Raises UsageError for one that measured no quantization."""
    if isinstance(known, Calibration) and known.types:
        return known
    what = "was made `--for-lossy`" if isinstance(known, Calibration) else "is an importance matrix of llama.cpp"
    raise UsageError(
        f"`{path}` {what}: it weighs columns, and measured no quantization, which `{option}` needs",
        hint="`edgemoe calibrate MODEL --text FILE -o FILE` measures that; with `--type` this file will do",
    )


def require_uses(known: Calibration | ImportanceMatrix, path: Path, option: str) -> Calibration:
    """The calibration for who asks what each expert gives. Raises UsageError for a matrix of llama.cpp."""
    if isinstance(known, Calibration):
        return known
    raise UsageError(
        f"`{path}` is an importance matrix of llama.cpp: it does not say what experts give, which `{option}` needs",
        hint="`edgemoe calibrate MODEL --text FILE --for-lossy` measures that",
    )


def _parse(header: Header) -> ImportanceMatrix:
    sums: dict[tuple[int, str], Floats] = {}
    counts: dict[tuple[int, str], Floats] = {}
    n_dense = 0
    try:
        for name, values in tensors_of(header):
            match = _TENSOR.fullmatch(name)
            if match is None:
                n_dense += name.endswith(".in_sum2")
                continue
            into = sums if match[3] == "in_sum2" else counts
            into[int(match[1]), match[2]] = values.reshape(-1, values.shape[-1])
        columns = {key: _mean(key, sums[key], counts.get(key)) for key in sorted(sums)}
    except FormatError as error:
        raise FormatError(f"the importance matrix `{header.path}` is damaged: {error.message}") from None
    _require_experts(header.path, columns)
    meta = header.values
    n_chunk, chunk = decode(meta.get("imatrix.chunk_count")), decode(meta.get("imatrix.chunk_size"))
    n_token = n_chunk * chunk if type(n_chunk) is int and type(chunk) is int else 0
    text = ", ".join(decode_strings(meta.get("imatrix.datasets")))[:_MAX_NAME]
    facts = {"kind": KIND, "text": text}
    return ImportanceMatrix(_both_forms(columns), n_token, n_dense, facts)


def _require_experts(path: Path, columns: Mapping[tuple[int, str], Floats]) -> None:
    if not columns:
        raise FormatError(
            f"the importance matrix `{path}` of llama.cpp has nothing on routed experts",
            hint="it is of a dense model: make one of this model with `llama-imatrix` or `edgemoe calibrate`",
        )


def _mean(key: tuple[int, str], sums: Floats, counts: Floats | None) -> Floats:
    """Mean squares: sums over counts, an expert a row; zeros for one that was never used."""
    what = f"{key[1]} of block {key[0]}"
    if counts is None or counts.size not in (1, len(sums)):
        raise FormatError(f"{what} has no count for each expert")
    check_range(f"counts of {what}", counts)
    check_range(f"sums of {what}", sums)
    each = np.broadcast_to(counts.reshape(-1, 1), (len(sums), 1))
    return np.asarray(np.where(each > 0, sums / np.maximum(each, 1e-30), 0), np.float32)


def _both_forms(columns: Mapping[tuple[int, str], Floats]) -> dict[tuple[int, str], Floats]:
    """Gate and up meet the same input, whether a file holds them as one matrix or as two."""
    found = dict(columns)
    for layer in {layer for layer, _ in columns}:
        known = next((columns[layer, role] for role in ("gate_up", "up", "gate") if (layer, role) in columns), None)
        if known is not None:
            for role in ("gate_up", "up", "gate"):
                found.setdefault((layer, role), known)
    return found
