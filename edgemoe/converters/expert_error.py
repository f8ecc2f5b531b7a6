"""How wrong an expert's output becomes when one of its matrices is quantized: measured on stored activations.

Errors are shares of the squared output, so that they can be multiplied by what the whole calibration text gave.
Rounding errors of different rows are independent, so the error of a matrix is a sum over rows: some rows stand for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from . import compensate
from .compensate import Factor
from .ggml import Floats, dequantize, quantize
from .source import DenseTensor, Rows

F64 = npt.NDArray[np.float64]

N_ROW = 48  # of a matrix that are quantized to measure it
N_TOKEN = 96  # of those that meet an expert
_LEAST_TOKENS = 24  # an expert that was met by fewer is measured on others' tokens as well, which count little
_OTHERS = 0.02


def silu(x: Floats) -> Floats:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -80, 80))), np.float32)


def gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))), np.float32)


def _gated(act: Callable[[Floats], Floats]) -> Callable[[Floats, Floats], Floats]:
    return lambda gate, up: act(gate) * up


def _swiglu_oai(gate: Floats, up: Floats) -> Floats:
    gate = np.minimum(gate, 7)
    return np.asarray(gate / (1 + np.exp(-1.702 * gate)) * (np.clip(up, -7, 7) + 1), np.float32)


GATED: dict[str, Callable[[Floats, Floats], Floats]] = {
    "silu": _gated(silu), "gelu": _gated(gelu), "swiglu_oai": _swiglu_oai,
}  # fmt: skip
"""(what gate gives, what up gives) -> what down meets."""


def activation_of(architecture: str) -> str:
    """That of an architecture's experts; whether it is right shows in what the calibration text gave."""
    return {"gpt-oss": "swiglu_oai", "grok": "gelu"}.get(architecture, "silu")


@dataclass(frozen=True)
class ExpertMatrices:
    """An expert in float32, [n_row, n_col] each, with its biases where it has any; fused ones are taken apart."""

    gate: Floats
    up: Floats
    down: Floats
    gate_bias: Floats | float = 0.0
    up_bias: Floats | float = 0.0
    down_bias: Floats | float = 0.0


def load_expert(
    stacks: Mapping[str, tuple[Rows, ...]], expert: int, biases: Mapping[str, Floats]
) -> ExpertMatrices | None:
    """stacks, biases: by role. None when the expert has no gate: its form is not known here."""
    found = {role: _load(stack[expert]) for role, stack in stacks.items()}
    bias: dict[str, Floats | float] = {role: values[expert] for role, values in biases.items()}
    if "gate_up" in found:
        half = found["gate_up"].shape[0] // 2
        found |= {"gate": found["gate_up"][:half], "up": found["gate_up"][half:]}
        if "gate_up" in bias:
            both = np.asarray(bias["gate_up"])
            bias |= {"gate": both[:half], "up": both[half:]}
    if not {"gate", "up", "down"} <= found.keys():
        return None
    return ExpertMatrices(
        found["gate"], found["up"], found["down"], bias.get("gate", 0.0), bias.get("up", 0.0), bias.get("down", 0.0)
    )


def load_biases(dense: Sequence[DenseTensor], layer: int, roles: Sequence[str]) -> dict[str, Floats]:
    """Of the experts of a layer, [n_expert, n_row], by role."""
    names = {f"blk.{layer}.ffn_{role}_exps.bias": role for role in roles}
    return {names[tensor.name]: _load(tensor.rows) for tensor in dense if tensor.name in names}


def _load(rows: Rows) -> Floats:
    return dequantize(rows.load(0, rows.n_row), rows.type, rows.n_col)


@dataclass(frozen=True)
class Met:
    """What an expert met: activations [n, n_in], and what each token counts (squared)."""

    x: Floats
    count: F64

    @staticmethod
    def of(x: Floats, w: Floats, expert: int) -> Met:
        """The expert's own tokens of the layer's sample, evenly picked; and others' where it has few."""
        count = w[:, expert].astype(np.float64) ** 2
        own = np.flatnonzero(count > 0)
        picked = own[np.linspace(0, len(own) - 1, min(len(own), N_TOKEN)).astype(int)] if len(own) else own
        if len(own) < _LEAST_TOKENS:
            others = np.flatnonzero(count == 0)[: 2 * _LEAST_TOKENS]
            usual = float((w.astype(np.float64) ** 2).sum() / max(1, int((w > 0).sum())))
            count[others] = _OTHERS * (usual or 1.0)
            picked = np.concatenate([picked, others])
        return Met(x[picked], count[picked])


@dataclass(frozen=True)
class Quantizer:
    """How an expert's matrices are rounded. By role, importance: of the columns; factors: for compensated rounding."""

    importance: Mapping[str, Floats | None]
    factors: Mapping[str, Factor | None] = field(default_factory=dict)

    def rounding(self, matrix: Floats, name: str, role: str) -> Floats:
        """What quantizing adds."""
        factor, importance = self.factors.get(role), self.importance.get(role)
        if factor is None:
            raw = quantize(matrix, name, importance)
        else:
            raw = compensate.quantize(matrix, name, factor, importance)
        return dequantize(raw, name, matrix.shape[1]) - matrix


def relative_errors(
    expert: ExpertMatrices, met: Met, quantizer: Quantizer, types: Sequence[str], act: str
) -> dict[str, F64]:
    """For gate, up and down: the squared error of the output by type, as a share of its square."""
    gated = GATED[act]
    gate = met.x @ expert.gate.T + expert.gate_bias
    up = met.x @ expert.up.T + expert.up_bias
    hidden = gated(gate, up)
    out = hidden @ expert.down.T + expert.down_bias
    total = float(met.count @ np.square(out, dtype=np.float64).sum(1))
    if not total > 0:
        return {role: np.zeros(len(types)) for role in ("gate", "up", "down")}
    # What a row of gate and up counts: its share of hidden, and the column of down that takes it on.
    size = met.count @ np.square(hidden, dtype=np.float64) * np.square(expert.down, dtype=np.float64).sum(0)
    rows, scale = _rows(size)
    columns = np.square(expert.down[:, rows], dtype=np.float64).sum(0)
    out_rows, out_scale = _rows(met.count @ np.square(out, dtype=np.float64))
    found = {role: np.zeros(len(types)) for role in ("gate", "up", "down")}
    for i, name in enumerate(types):
        for role, matrix in (("gate", expert.gate), ("up", expert.up)):
            wrong = met.x @ quantizer.rounding(matrix[rows], name, role).T
            if role == "gate":
                change = gated(gate[:, rows] + wrong, up[:, rows])
            else:
                change = gated(gate[:, rows], up[:, rows] + wrong)
            change = change - hidden[:, rows]
            found[role][i] = scale * float(met.count @ (np.square(change, dtype=np.float64) @ columns)) / total
        wrong = hidden @ quantizer.rounding(expert.down[out_rows], name, "down").T
        found["down"][i] = out_scale * float(met.count @ np.square(wrong, dtype=np.float64).sum(1)) / total
    return found


def weight_errors(matrix: Floats, role: str, quantizer: Quantizer, types: Sequence[str]) -> F64:
    """The cheap stand-in where an expert's form is not known: the weighted squared rounding error of its weights."""
    importance = quantizer.importance.get(role)
    weights = np.ones(matrix.shape[1]) if importance is None else importance.astype(np.float64)
    rows = np.linspace(0, matrix.shape[0] - 1, min(N_ROW, matrix.shape[0])).astype(int)
    total = float((np.square(matrix[rows], dtype=np.float64) @ weights).sum())
    errors = [
        float((np.square(quantizer.rounding(matrix[rows], name, role), dtype=np.float64) @ weights).sum())
        for name in types
    ]
    return np.array(errors) / total if total > 0 else np.zeros(len(types))


def _rows(size: F64) -> tuple[npt.NDArray[np.int64], float]:
    """Up to N_ROW rows that count anything, evenly picked by rank, and by how much their sum falls short of all."""
    order = np.argsort(-size)[: max(1, int((size > 0).sum()))]
    picked = np.sort(order[np.linspace(0, len(order) - 1, min(N_ROW, len(order))).astype(int)])
    part = float(size[picked].sum())
    return picked, float(size.sum()) / part if part > 0 else 1.0
