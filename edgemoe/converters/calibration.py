"""What `edgemoe calibrate` learned of a model's experts: data, and the GGUF file that carries it.

The file is an importance matrix that llama.cpp's quantizer takes as well (`<tensor>.in_sum2` and `.counts`), with
tensors of ours beside, which llama.cpp ignores; docs/quality.md lists them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np

from ..errors import FormatError, UsageError
from ..paths import whole_file
from ..printable import whole_characters
from . import gguf_header
from .ggml import Bytes, Floats, dequantize, quantize
from .gguf_header import Header, decode, decode_strings
from .source import Key, Source, SourceFile

VERSION = 1
STATS = ("tokens", "weight", "weight2", "output2", "largest")
"""Of an expert, over the calibration text: tokens routed to it; sums over them of the router's weight, of w^2, and of
w^2 |output|^2; the largest |output|. w: the router's weight over the root mean square of the residual stream."""

MAX_VALUE = 1e24
"""The largest importance that is taken: quantizers multiply it by squares of weights and sum that in float32."""

PRICES = ("cost", "limit", "raw", "nats")
"""Keys `edgemoe.lossy.*`: arrays of float32; see `Prices`."""

_PRICES, _TYPES = "edgemoe.lossy", "edgemoe.calibration.types"
_SUMS = re.compile(r"ffn_(\w+)_exps\.weight\.in_sum2")
_SAMPLE_X, _SAMPLE_W = "edgemoe.sample.input", "edgemoe.sample.weight"
_STATS, _MEAN, _ERRORS, _SENSITIVITY = "edgemoe.stats", "edgemoe.mean_output", "edgemoe.error", "edgemoe.sensitivity"


@dataclass(frozen=True)
class LayerCalibration:
    """One layer's experts.

    stats: [n_expert, STATS]. mean_output: [n_expert, n_out], of the tokens routed to each. importance: by role,
    [n_expert, n_col], sum of w^2 x^2. errors: by role, [n_expert, type], share of an expert's squared output that
    quantizing the matrix adds. shapes: by role, (n_row, n_col).
    """

    stats: Floats
    mean_output: Floats
    importance: Mapping[str, Floats]
    errors: Mapping[str, Floats]
    shapes: Mapping[str, tuple[int, int]]

    @property
    def n_expert(self) -> int:
        return len(self.stats)


@dataclass(frozen=True)
class Prices:
    """What leaving out experts costs in decode, for `--lossy`; see `quality/prices.py` for how it is measured.

    cost: of each expert, all layers in turn, infinite for those that are never left out. limit, raw, nats: a row a
    measurement, ascending: limit of a use's cost, sum of costs a token, divergence in nats a token.
    """

    cost: Floats
    limit: Sequence[float]
    raw: Sequence[float]
    nats: Sequence[float]


class Sample(Protocol):
    """Inputs of a layer's experts that a calibration kept."""

    def load(self) -> tuple[Floats, Floats]:
        """x: [n, n_in], what gate and up meet. w: [n, n_expert], what an error of each expert counts, 0: not routed."""


@dataclass(frozen=True)
class KeptSample:
    """In memory. x: [n, n_in] in BF16, as bytes."""

    x: Bytes
    w: Floats

    def load(self) -> tuple[Floats, Floats]:
        return dequantize(self.x, "BF16", self.x.shape[1] // 2), self.w


@dataclass(frozen=True)
class FiledSample:
    """In a calibration's file, read when it is needed. shape: tokens, columns, experts."""

    file: SourceFile
    x_offset: int
    w_offset: int
    shape: tuple[int, int, int]

    def load(self) -> tuple[Floats, Floats]:
        n, n_col, n_expert = self.shape
        x = self.file.read(self.x_offset, 2 * n * n_col).reshape(n, 2 * n_col)
        w = self.file.read(self.w_offset, 4 * n * n_expert).view(np.float32).reshape(n, n_expert)
        if not np.isfinite(w).all():
            raise FormatError(f"the sample in `{self.file.path}` holds weights that are no numbers")
        return KeptSample(x, w).load()


@dataclass(frozen=True)
class PickedSample:
    """Of some experts, the others having left the model."""

    base: Sample
    picked: Sequence[int]

    def load(self) -> tuple[Floats, Floats]:
        x, w = self.base.load()
        return x, np.ascontiguousarray(w[:, list(self.picked)])


@dataclass(frozen=True)
class Calibration:
    """layers: by block number. types: of the last axis of `errors`. sensitivity: by block number, divergence in nats a
    token for a unit of w^2 |error|^2 a token. n_token: of the calibration text. facts: for people. prices: None in
    files of before 0.3. samples: by block number, none where rounding errors are not to be made good.
    """

    layers: Mapping[int, LayerCalibration]
    types: tuple[str, ...]
    sensitivity: Mapping[int, float]
    n_token: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    prices: Prices | None = None
    samples: Mapping[int, Sample] = field(default_factory=dict)

    @property
    def columns(self) -> Mapping[tuple[int, str], Floats]:
        """The importance of each matrix's columns, by block and role."""
        return {(n, role): values for n, layer in self.layers.items() for role, values in layer.importance.items()}

    def importance(self, key: Key, expert: int) -> Floats | None:
        """One weight a column for the quantizer; None for a matrix or an expert that the text never used."""
        layer, family, role = key
        known = self.layers[layer].importance.get(role) if family == "exps" and layer in self.layers else None
        return None if known is None else weights_of(known[expert])


def weights_of(sums: Floats) -> Floats | None:
    """What a quantizer takes of an expert's sums, None where there are none."""
    if not sums.any():
        return None
    # A column that met nothing must not be free: the quantizer divides by sums of these.
    return np.asarray(sums + 1e-6 * sums.mean(), np.float32)


def check_same_model(columns: Mapping[tuple[int, str], Floats], source: Source) -> list[int]:
    """The blocks of which it knows nothing. Raises UsageError when the importance is not that of these experts."""
    lacking = set()
    for (layer, family, role), stack in source.experts.items():
        known, due = columns.get((layer, role)), (len(stack), stack[0].n_col)
        if family != "exps" or (known is not None and known.shape == due):
            continue
        if known is None:
            lacking.add(layer)
            continue
        raise UsageError(
            f"the calibration is of another model: for {role} of block {layer} it has {known.shape[0]} experts of "
            f"{known.shape[1]} columns, the model has {due[0]} of {due[1]}",
            hint="calibrate this one: `edgemoe calibrate`",
        )
    if lacking == {layer for layer, family, _ in source.experts if family == "exps"}:
        raise UsageError(
            "the calibration is of another model: it knows none of the experts",
            hint="calibrate this one: `edgemoe calibrate`",
        )
    return sorted(lacking)


def save(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write it, atomically. Raises StorageError; FormatError for values that no quantizer can use."""
    file = Path(path)
    _check_numbers(calibration)
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [whole_characters(str(calibration.facts.get("text", "")))])
    writer.add_uint32("imatrix.chunk_count", int(calibration.facts.get("n_window", 1)))
    writer.add_uint32("imatrix.chunk_size", int(calibration.facts.get("n_ctx", calibration.n_token)))
    writer.add_uint32("edgemoe.calibration.version", VERSION)
    writer.add_uint64("edgemoe.calibration.n_token", calibration.n_token)
    writer.add_array(_TYPES, list(calibration.types))  # nothing is written of an empty one
    for name, value in calibration.facts.items():
        writer.add_string(f"edgemoe.calibration.facts.{name}", whole_characters(str(value)))
    if calibration.prices:
        for name in PRICES:
            writer.add_array(f"{_PRICES}.{name}", [float(value) for value in getattr(calibration.prices, name)])
    for number, layer in calibration.layers.items():
        counts = np.ascontiguousarray(layer.stats[:, STATS.index("weight2")]).reshape(-1, 1)
        for role, values in layer.importance.items():
            name = f"blk.{number}.ffn_{role}_exps.weight"
            writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(values, np.float32))
            writer.add_tensor(f"{name}.counts", np.asarray(counts, np.float32))
        writer.add_tensor(f"blk.{number}.{_STATS}", np.ascontiguousarray(layer.stats, np.float32))
        writer.add_tensor(f"blk.{number}.{_MEAN}", np.ascontiguousarray(layer.mean_output, np.float32))
        for role, values in layer.errors.items():
            writer.add_tensor(f"blk.{number}.{_ERRORS}.{role}", np.ascontiguousarray(values, np.float32))
        for role, shape in layer.shapes.items():
            writer.add_array(f"edgemoe.calibration.shape.{number}.{role}", list(shape))
        writer.add_tensor(f"blk.{number}.{_SENSITIVITY}", np.array([calibration.sensitivity[number]], np.float32))
    for number, sample in calibration.samples.items():
        x, w = sample.load()
        writer.add_tensor(f"blk.{number}.{_SAMPLE_X}", quantize(x, "BF16"), raw_dtype=gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(f"blk.{number}.{_SAMPLE_W}", np.ascontiguousarray(w, np.float32))
    with whole_file(file) as stream:
        writer.fout = [stream]
        writer.state = gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def load(path: str | os.PathLike[str]) -> Calibration:
    """Read what `save` wrote. Raises StorageError, FormatError."""
    file = Path(path)
    return parse(read_header(file))


def read_header(file: Path) -> Header:
    """The header of a calibration's file, whoever wrote it. Raises StorageError, FormatError."""
    try:
        return gguf_header.read(file)
    except FormatError as error:
        raise _no_calibration(file, error.message.replace(f"`{file}`", "it")) from None


def parse(header: Header) -> Calibration:
    """The calibration in a file. Raises StorageError, FormatError."""
    try:
        found = _parse(header)
        _check_numbers(found)
    except FormatError as error:
        raise _no_calibration(header.path, error.message) from None
    except KeyError as error:
        raise _no_calibration(header.path, f"it lacks {error}") from None
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise _no_calibration(header.path, str(error)[:80]) from None
    return found


def _no_calibration(file: Path, why: str) -> FormatError:
    return FormatError(
        f"`{file}` is no calibration that this version reads: {why}",
        hint="make one: `edgemoe calibrate MODEL -o FILE`",
    )


def tensors_of(header: Header) -> Iterator[tuple[str, Floats]]:
    """Name and values of each tensor, the last dimension first. Raises FormatError for one that is no float32."""
    file = SourceFile(header.path)
    for tensor in header.tensors:
        if tensor.name.endswith((_SAMPLE_X, _SAMPLE_W)):
            continue  # large: read when they are needed
        if tensor.type != "F32":
            raise FormatError(f"`{tensor.name}` is stored as {tensor.type}")
        raw = file.read(tensor.offset, tensor.n_bytes)
        yield tensor.name, raw.view(np.float32).reshape(tuple(reversed(tensor.ne)))


def _parse(header: Header) -> Calibration:
    values = header.values
    version = decode(values.get("edgemoe.calibration.version"))
    if version != VERSION:
        raise ValueError("it is not one of edgemoe" if version is None else f"it has version {version}")
    measured = _TYPES in values or f"{_PRICES}.cost" not in values  # `--for-lossy` leaves quantizations out
    types = tuple(decode_strings(values[_TYPES])) if measured else ()
    parts: dict[int, dict[str, Floats]] = {}
    for name, array in tensors_of(header):
        block, _, rest = name.removeprefix("blk.").partition(".")
        parts.setdefault(int(block), {})[rest] = array
    layers, sensitivity = {}, {}
    for number, found in sorted(parts.items()):
        roles = [match[1] for name in found if (match := _SUMS.fullmatch(name))]
        layers[number] = layer = LayerCalibration(
            found[_STATS],
            found[_MEAN],
            {role: found[f"ffn_{role}_exps.weight.in_sum2"] for role in roles},
            {role: found[f"{_ERRORS}.{role}"] for role in roles} if types else {},
            {role: _pair(decode(values[f"edgemoe.calibration.shape.{number}.{role}"])) for role in roles},
        )
        _check_shapes(number, layer, len(types))
        sensitivity[number] = float(found[_SENSITIVITY].reshape(-1)[0])
    if not layers:
        raise ValueError("it has no layers")
    prefix = "edgemoe.calibration.facts."
    facts = {n.removeprefix(prefix): str(decode(v)) for n, v in values.items() if n.startswith(prefix)}
    n_token = int(decode(values["edgemoe.calibration.n_token"]))
    return Calibration(layers, types, sensitivity, n_token, facts, _prices(header), _samples(header, layers))


def _samples(header: Header, layers: Mapping[int, LayerCalibration]) -> dict[int, Sample]:
    named = {tensor.name: tensor for tensor in header.tensors}
    file, found = SourceFile(header.path), dict[int, Sample]()
    for number, layer in layers.items():
        x, w = (named.get(f"blk.{number}.{name}") for name in (_SAMPLE_X, _SAMPLE_W))
        if x is None or w is None:
            continue
        n_col, n = x.ne
        n_in = next((cols for role, (_, cols) in layer.shapes.items() if role != "down"), n_col)
        if (x.type, w.type, n_col, w.ne) != ("BF16", "F32", n_in, (layer.n_expert, n)):
            raise ValueError(f"the sample of layer {number} does not fit its experts")
        found[number] = FiledSample(file, x.offset, w.offset, (n, n_col, layer.n_expert))
    return found


def _prices(header: Header) -> Prices | None:
    if f"{_PRICES}.cost" not in header.values:
        return None
    found = {name: np.asarray(decode(header.values[f"{_PRICES}.{name}"]), np.float32) for name in PRICES}
    return Prices(found["cost"], *(found[name].tolist() for name in PRICES[1:]))


def _check_shapes(number: int, layer: LayerCalibration, n_type: int) -> None:
    n = len(layer.stats)
    good = layer.stats.shape == (n, len(STATS)) and layer.mean_output.shape[:1] == (n,) and bool(layer.shapes)
    good = good and all(errors.shape == (n, n_type) for errors in layer.errors.values())
    for role, values in layer.importance.items():
        good = good and values.shape == (n, layer.shapes[role][1]) and min(layer.shapes[role]) > 0
    if not good:
        raise ValueError(f"the tables of layer {number} do not fit each other")


def _check_numbers(calibration: Calibration) -> None:
    """Raises FormatError for what is no number, and for numbers beyond what quantizers can square and sum."""
    for number, layer in calibration.layers.items():
        for role, values in layer.importance.items():
            check_range(f"importance of {role} in layer {number}", values)
        check_range(f"statistics of layer {number}", layer.stats)
        check_range(f"mean outputs of layer {number}", np.abs(layer.mean_output))
        for role, errors in layer.errors.items():  # infinite: for a type that the rows do not divide into
            check_range(f"errors of {role} in layer {number}", np.where(np.isposinf(errors), 0, errors))
        # Below zero by chance, where noise does next to nothing.
        check_range(f"sensitivity of layer {number}", np.abs(np.float64(calibration.sensitivity[number])))


def check_range(what: str, values: Any) -> None:
    """Raises FormatError unless all values are from 0 to MAX_VALUE."""
    wrong = ~((values >= 0) & (values <= MAX_VALUE))
    if np.any(wrong):
        value = np.asarray(values).reshape(-1)[np.flatnonzero(wrong)[0]]
        raise FormatError(f"the {what} hold the value {value:g}, which is none that a measurement gives")


def _pair(value: Any) -> tuple[int, int]:
    n_row, n_col = value
    return int(n_row), int(n_col)
