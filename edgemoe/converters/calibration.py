"""What `edgemoe calibrate` learned of a model's experts: data, and the GGUF file that carries it.

The file is an importance matrix that llama.cpp's quantizer takes as well (`<tensor>.in_sum2` and `.counts`), with
tensors of ours beside, which llama.cpp ignores; docs/quality.md lists them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import FormatError, StorageError
from ..paths import whole_file

VERSION = 1
STATS = ("tokens", "weight", "weight2", "output2", "largest")
"""Of an expert, over the calibration text: tokens routed to it; sums over them of the router's weight, of w^2, and of
w^2 |output|^2; the largest |output|. w: the router's weight over the root mean square of the residual stream."""

Floats = npt.NDArray[np.float32]
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
class Calibration:
    """layers: by block number. types: of the last axis of `errors`. sensitivity: by block number, divergence in nats a
    token for a unit of w^2 |error|^2 a token. n_token: of the calibration text. facts: for people.
    """

    layers: Mapping[int, LayerCalibration]
    types: tuple[str, ...]
    sensitivity: Mapping[int, float]
    n_token: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def importance(self, key: tuple[int, str, str], expert: int) -> Floats | None:
        """One weight a column for the quantizer; None for a matrix or an expert that the text never used."""
        layer, family, role = key
        if family != "exps" or layer not in self.layers:
            return None
        known = self.layers[layer].importance.get(role)
        if known is None or not known[expert].any():
            return None
        # A column that met nothing must not be free: the quantizer divides by sums of these.
        return np.asarray(known[expert] + 1e-6 * known[expert].mean(), np.float32)


def save(calibration: Calibration, path: str | os.PathLike[str]) -> None:
    """Write it, atomically. Raises StorageError."""
    file = Path(path)
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [str(calibration.facts.get("text", ""))])
    writer.add_uint32("imatrix.chunk_count", int(calibration.facts.get("n_window", 1)))
    writer.add_uint32("imatrix.chunk_size", int(calibration.facts.get("n_ctx", calibration.n_token)))
    writer.add_uint32("edgemoe.calibration.version", VERSION)
    writer.add_uint64("edgemoe.calibration.n_token", calibration.n_token)
    writer.add_array("edgemoe.calibration.types", list(calibration.types))
    for name, value in calibration.facts.items():
        writer.add_string(f"edgemoe.calibration.facts.{name}", str(value))
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
            writer.add_array(f"edgemoe.calibration.shape.{number}.{role}", list(layer.shapes[role]))
        writer.add_tensor(f"blk.{number}.{_SENSITIVITY}", np.array([calibration.sensitivity[number]], np.float32))
    with whole_file(file) as stream:
        writer.fout = [stream]
        writer.state = gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def load(path: str | os.PathLike[str]) -> Calibration:
    """Read what `save` wrote. Raises StorageError, FormatError."""
    file = Path(path)
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise FormatError(f"`{file}` is no calibration", hint="make one: `edgemoe calibrate MODEL -o FILE`")
        reader = gguf.GGUFReader(file)
        return _parse(reader)
    except OSError as error:
        raise StorageError(f"cannot read `{file}`: {error.strerror or error}") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"`{file}` is no calibration that this version reads ({error})",
            hint="make one: `edgemoe calibrate MODEL -o FILE`",
        ) from None


def _parse(reader: gguf.GGUFReader) -> Calibration:
    values = {name: item.contents() for name, item in reader.fields.items() if name.startswith("edgemoe.")}
    if values["edgemoe.calibration.version"] != VERSION:
        raise ValueError(f"version {values['edgemoe.calibration.version']}")
    types = tuple(values["edgemoe.calibration.types"])
    parts: dict[int, dict[str, Floats]] = {}
    for tensor in reader.tensors:
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        shape = tuple(int(n) for n in reversed(tensor.shape))
        parts.setdefault(int(block), {})[rest] = np.array(tensor.data, np.float32).reshape(shape)
    layers, sensitivity = {}, {}
    for number, found in sorted(parts.items()):
        roles = [name.removeprefix(f"{_ERRORS}.") for name in found if name.startswith(f"{_ERRORS}.")]
        stats = found[_STATS]
        layer = LayerCalibration(
            stats,
            found[_MEAN],
            {role: found[f"ffn_{role}_exps.weight.in_sum2"] for role in roles},
            {role: found[f"{_ERRORS}.{role}"] for role in roles},
            {role: _pair(values[f"edgemoe.calibration.shape.{number}.{role}"]) for role in roles},
        )
        if stats.shape[1] != len(STATS) or any(e.shape != (len(stats), len(types)) for e in layer.errors.values()):
            raise ValueError(f"the tables of layer {number} do not fit each other")
        layers[number] = layer
        sensitivity[number] = float(found[_SENSITIVITY].reshape(-1)[0])
    if not layers:
        raise ValueError("it has no layers")
    facts = {n.removeprefix("edgemoe.calibration.facts."): v for n, v in values.items() if ".facts." in n}
    return Calibration(layers, types, sensitivity, int(values["edgemoe.calibration.n_token"]), facts)


def _pair(value: Any) -> tuple[int, int]:
    n_row, n_col = value
    return int(n_row), int(n_col)
