"""Types for a target that a person names: mean bits of an expert weight, or the size of the file."""

from __future__ import annotations

from ..errors import UsageError
from ..units import format_size
from .allocate import allocate
from .allocation import Allocation
from .calibration import Calibration
from .ggml import row_bytes
from .source import Source
from .target import Target, make_target
from .types import AskedTypes

_ROUNDS = 8


def allocation_for(
    source: Source,
    calibration: Calibration,
    *,
    bits: float | None = None,
    file_bytes: int | None = None,
    stacked: bool = False,
    dense_type: str | None = None,
) -> Allocation:
    """The best types for the target. stacked: one type a matrix of a layer. Raises UsageError."""
    _check_same_model(source, calibration)
    method = "per-layer" if stacked else "program"
    if file_bytes is None:
        if bits is None or not 0 < bits <= 32:
            raise UsageError(f"{bits} bits a weight make no sense", hint="write a number like `--bits 3.2`")
        return allocate(calibration, bits=bits, method=method)
    # Padding depends on the types, and is unknown before they are chosen: choose, measure, give back what is over.
    room = file_bytes
    for _ in range(_ROUNDS):
        chosen = allocate(calibration, n_bytes=max(1, room), method=method)
        types = AskedTypes(source.is_gguf, allocation=chosen, dense_type=dense_type, patterns=chosen.dense)
        target = make_target(source, types, stacked=stacked)
        over = size_of(target) - file_bytes
        if over <= 0:
            return chosen
        room = min(room, _expert_bytes(target)) - over
        if room <= 0:
            break
    raise UsageError(
        f"{format_size(file_bytes)} are too few for this model",
        hint="ask for a larger size, or `--dense-type` with fewer bits",
    )


def size_of(target: Target) -> int:
    """Bytes of the finished file."""
    return len(target.header()) + target.offsets()[1]


def _expert_bytes(target: Target) -> int:
    return sum(
        row_bytes(tensor.type, part.rows.n_col) * part.rows.n_row
        for tensor in target.tensors
        if "exps." in tensor.name
        for part in tensor.parts
    )


def _check_same_model(source: Source, calibration: Calibration) -> None:
    wanted = {(layer, role): len(stack) for (layer, family, role), stack in source.experts.items() if family == "exps"}
    known = {(layer, role): found.n_expert for layer, found in calibration.layers.items() for role in found.shapes}
    if wanted != known:
        raise UsageError("the calibration is of another model", hint="calibrate this one: `edgemoe calibrate`")
