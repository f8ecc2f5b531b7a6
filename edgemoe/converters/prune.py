"""Experts that leave the model: which matter least, and the model without them.

Every layer loses as many, since a GGUF has one number of experts for all layers. Within a layer those go that
contributed least to the residual stream over the calibration text: the sum of squares of what an expert gave, each
times the router's weight and over the size of what it was added to. That is use, output and weight in one number; the
layer's sensitivity is the same for all its experts, and ranks none. Super Experts stay. docs/experiments/pruning.md
has what other criteria give.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError, UsageError
from ..units import format_share
from .allocate import super_experts
from .calibration import STATS, Calibration, LayerCalibration, PickedSample, check_same_model
from .ggml import PLAIN
from .gguf_header import decode, encode
from .source import DenseTensor, PickedColumns, PickedRows, Source

Picked = npt.NDArray[np.int64]
Kept = Mapping[int, Picked]
"""By block: numbers of the experts that stay, ascending."""

_BY_EXPERT = re.compile(r"blk\.(\d+)\.(?:ffn_gate_inp|exp_probs_b|ffn_(?:gate_up|gate|up|down)_exps)\.\w+")
_ROUTER = re.compile(r"blk\.(\d+)\.ffn_gate_inp\.weight")
_BY_TOKEN = "ffn_gate_tid2eid"  # of layers in which the token itself names its experts
_FEWER_BITS = "give the experts fewer bits: `--bits`"
_RANKS_A_GROUP = 2  # llama.cpp ranks a group by its best two experts


@dataclass(frozen=True)
class Pruned:
    """The model and its calibration without the experts that left. facts: for people."""

    source: Source
    calibration: Calibration
    facts: Mapping[str, Any]


def prune(source: Source, calibration: Calibration, share: float) -> Pruned:
    """Without a share (0 to 1) of each layer's experts, rounded down. Raises UsageError, UnsupportedError."""
    n_expert = _check_model(source, calibration)
    n_group = n_group_of(source)
    n_out = _n_out(source, share, n_expert, n_group)
    kept = experts_kept(calibration, n_out, n_group)
    values = {**source.values, _key(source, "expert_count"): encode(n_expert - n_out)}
    dense = tuple(_without(tensor, kept, n_expert) for tensor in source.dense)
    _check_routers(source, dense, kept)
    without = dataclasses.replace(
        source,
        values=values,
        dense=dense,
        experts={key: tuple(stack[i] for i in kept[key[0]]) for key, stack in source.experts.items()},
    )
    layers = {number: _layer(layer, kept[number]) for number, layer in calibration.layers.items()}
    facts = {
        "share": share,
        "n_expert": n_expert,
        "n_expert_left": n_expert - n_out,
        "uses_lost": uses_lost(calibration, kept),
        "kept": {str(number): picked.tolist() for number, picked in kept.items()},
    }
    samples = {n: PickedSample(sample, kept[n].tolist()) for n, sample in calibration.samples.items() if n in kept}
    return Pruned(without, dataclasses.replace(calibration, layers=layers, samples=samples, prices=None), facts)


def pruned_counts(source: Source, calibration: Calibration) -> list[int]:
    """How many experts may leave each layer, ascending. Raises UsageError, UnsupportedError where all stay."""
    n_expert = _check_model(source, calibration)
    n_group = n_group_of(source)
    return list(range(n_group, n_expert - _least(source, n_group) + 1, n_group))


def n_group_of(source: Source) -> int:
    """Groups of experts that the router picks among first; 1: it does not."""
    return _number(source, "expert_group_count") or 1


def experts_kept(calibration: Calibration, n_out: int, n_group: int = 1) -> Kept:
    """All but the n_out of each layer that contributed least, as many of each group; n_out is a multiple of n_group."""
    guarded: dict[int, list[int]] = {}
    for number, expert in super_experts(calibration):
        guarded.setdefault(number, []).append(expert)
    return {
        number: _layer_keeps(layer, n_out, n_group, guarded.get(number, ()))
        for number, layer in calibration.layers.items()
    }


def _layer_keeps(layer: LayerCalibration, n_out: int, n_group: int, guarded: Collection[int]) -> Picked:
    contribution = layer.stats[:, STATS.index("output2")].astype(np.float64)
    contribution[list(guarded)] = np.inf
    groups = np.split(np.arange(layer.n_expert), n_group)
    out = [group[np.argsort(contribution[group], kind="stable")[: n_out // n_group]] for group in groups]
    return np.setdiff1d(np.arange(layer.n_expert), np.concatenate(out))


def uses_lost(calibration: Calibration, kept: Kept) -> float:
    """Share of all uses on the calibration text that were of experts that left."""
    column = STATS.index("tokens")
    total = sum(float(layer.stats[:, column].sum()) for layer in calibration.layers.values())
    left = sum(float(layer.stats[kept[number], column].sum()) for number, layer in calibration.layers.items())
    return 1 - left / max(1.0, total)


# ---------------------------------------------------------------- what can be pruned


def _key(source: Source, name: str) -> str:
    return f"{source.architecture}.{name}"


def _number(source: Source, name: str) -> int:
    """A whole number of the metadata, 0 where there is none."""
    value = decode(source.values.get(_key(source, name)))
    return value if isinstance(value, int) else 0


def _check_model(source: Source, calibration: Calibration) -> int:
    """The experts of a layer. Raises UnsupportedError, UsageError."""
    for tensor in source.dense:
        if _BY_TOKEN in tensor.name:
            raise UnsupportedError(
                f"`{source.path}` cannot be pruned: the token itself names experts in some layers (`{tensor.name}`)",
                hint=_FEWER_BITS,
            )
    if any(family != "exps" for _, family, _ in source.experts):
        raise UnsupportedError(
            f"`{source.path}` cannot be pruned: groups of its experts share adjugate experts",
            hint=_FEWER_BITS,
        )
    lacking = check_same_model(calibration.columns, source)
    if lacking:
        blocks = ", ".join(map(str, lacking))
        raise UnsupportedError(
            f"the calibration knows nothing of the experts of block {blocks}, and every layer must lose as many",
            hint=_FEWER_BITS,
        )
    n_expert = _number(source, "expert_count")
    for (layer, _, _), stack in source.experts.items():
        if len(stack) != n_expert:
            raise UnsupportedError(
                f"`{source.path}` cannot be pruned: block {layer} has {len(stack)} experts, "
                f"`{_key(source, 'expert_count')}` says {n_expert or 'nothing'}"
            )
    return n_expert


def _n_out(source: Source, share: float, n_expert: int, n_group: int) -> int:
    """Experts that leave each layer."""
    if not 0 < share < 1:
        raise UsageError(f"`--prune {share:g}` makes no sense", hint="give the share of experts that go: `--prune 0.1`")
    # A decimal share of a whole number may be a hair below the whole number that it means.
    n_out = math.floor(share * n_expert + 1e-9)
    if n_out == 0:
        raise UsageError(
            f"`--prune {share:g}` is less than one of the {n_expert} experts of a layer",
            hint=f"the smallest share is {format_share(n_group / n_expert)}",
        )
    least = _least(source, n_group)
    if n_expert - n_out < least:
        most = (n_expert - least) // n_group * n_group
        raise UsageError(
            f"`--prune {share:g}` leaves {n_expert - n_out} of {n_expert} experts, a token needs {least}",
            hint=f"the largest share is {format_share(most / n_expert)}" if most > 0 else _FEWER_BITS,
        )
    if n_out % n_group:
        below, above = n_out // n_group * n_group, (n_out // n_group + 1) * n_group
        shares = [format_share(n / n_expert) for n in (below, above) if 0 < n <= n_expert - least]
        raise UsageError(
            f"`--prune {share:g}` takes {n_out} experts of {n_group} groups, which must lose as many each",
            hint=f"shares that do: {', '.join(shares)}",
        )
    return n_out


def _least(source: Source, n_group: int) -> int:
    """Experts that a layer needs."""
    n_used = max(_number(source, "expert_used_count"), 1)
    if n_group == 1:
        return n_used
    # The groups that are used must hold a token's experts; llama.cpp ranks a group by its best two.
    n_used_group = _number(source, "expert_group_used_count") or n_group
    return n_group * max(_RANKS_A_GROUP, -(-n_used // n_used_group))


# ---------------------------------------------------------------- what is left


def _without(tensor: DenseTensor, kept: Kept, n_expert: int) -> DenseTensor:
    """What belongs to single experts loses those that left: the router's rows, biases, scales."""
    match = _BY_EXPERT.fullmatch(tensor.name)
    if match is None or int(match[1]) not in kept or tensor.ne[-1] != n_expert:
        return tensor
    picked = kept[int(match[1])]
    ne = (*tensor.ne[:-1], len(picked))
    if len(tensor.ne) > 1:
        return DenseTensor(tensor.name, ne, PickedRows(tensor.rows, picked))
    if tensor.rows.type not in PLAIN:
        raise UnsupportedError(f"`{tensor.name}` has type {tensor.rows.type}, of which single values cannot be taken")
    return DenseTensor(tensor.name, ne, PickedColumns(tensor.rows, picked))


def _check_routers(source: Source, dense: Sequence[DenseTensor], kept: Kept) -> None:
    """Raises UnsupportedError for a layer whose router did not lose its experts."""
    wanted = {number: len(picked) for number, picked in kept.items()}
    for tensor in dense:
        match = _ROUTER.fullmatch(tensor.name)
        if match and wanted.get(int(match[1])) == tensor.ne[-1]:
            del wanted[int(match[1])]
    if wanted:
        raise UnsupportedError(f"`{source.path}` cannot be pruned: the router of block {min(wanted)} is not found")


def _layer(layer: LayerCalibration, picked: Picked) -> LayerCalibration:
    return LayerCalibration(
        layer.stats[picked],
        layer.mean_output[picked],
        {role: values[picked] for role, values in layer.importance.items()},
        {role: values[picked] for role, values in layer.errors.items()},
        layer.shapes,
    )
