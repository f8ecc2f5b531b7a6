"""`edgemoe inspect`: what is in a model file, and the smallest memory it runs in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import BudgetError
from ..places import BUILTIN
from ..printable import plain
from ..units import format_exact, format_size
from .generate import find
from .options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from ..runtime.model import LayerInfo, Model


def inspect(model: ModelArgument = BUILTIN, json_output: JsonOption = False) -> None:
    """Show layers, experts, bits, bytes per expert and per token, and the smallest budget."""
    import edgemoe

    with edgemoe.open_model(find(model)) as opened:
        smallest = _smallest_bytes(opened)
        if json_output:
            print(json.dumps(_to_dict(opened, smallest), indent=2))
        else:
            _print(opened, smallest)


def _smallest_bytes(model: Model) -> int:
    """Asked of the planner, which names it in its plan or in its refusal."""
    import edgemoe

    try:
        return edgemoe.plan(model, measure=False).smallest_bytes
    except BudgetError as error:
        return error.smallest


def _to_dict(model: Model, smallest: int) -> dict[str, Any]:
    return {
        **dataclasses.asdict(model.info),
        "smallest_budget_bytes": smallest,
        "sampling": {name: model.recommended.values[name] for name in model.recommended.given},
        "layers": [dataclasses.asdict(layer) for layer in model.layers],
    }


def _print(model: Model, smallest: int) -> None:
    from rich.console import Console
    from rich.table import Table

    info = model.info
    tables = f", {format_size(info.table_bytes)} of it looked up by row" if info.table_bytes else ""
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", f"{info.name} ({info.architecture})"),
        ("files", f"{info.n_file}, {format_size(info.file_bytes)}"),
        ("layers", f"{info.n_layer}, {info.n_moe_layer} of them with experts"),
        ("experts", f"{info.n_expert_total:,}; a token uses {info.n_expert_used} of {info.n_expert} in a layer"),
        ("expert weights", format_size(info.expert_bytes)),
        ("dense weights", format_size(info.dense_bytes) + tables),
        ("per token", f"{format_size(info.token_bytes)} of experts, {format_size(info.dense_token_bytes)} dense"),
        ("trained context", f"{info.n_ctx_train:,} tokens"),
        ("sampling", model.recommended.line()),
        ("storage", "reads past the page cache" if info.direct_io else "no O_DIRECT here: bounded buffered reads"),
        ("smallest budget", f"--memory {format_exact(smallest)}"),
    ):
        facts.add_row(name, plain(value))
    layers = Table("layers", "experts", "bits", "bytes per expert", "types", box=None, padding=(0, 2, 0, 0))
    for first, last, layer in _runs(model.layers):
        layers.add_row(
            f"{first}" if first == last else f"{first}–{last}",
            str(layer.n_expert),
            f"{layer.bits_per_weight:.2f}",
            format_size(layer.expert_bytes),
            plain(layer.types),
        )
    console = Console(highlight=False, markup=False)
    console.print(facts)
    console.print()
    console.print(layers)


def _runs(layers: Iterable[LayerInfo]) -> Iterator[tuple[int, int, LayerInfo]]:
    """(first, last, one of them) for each run of neighbouring layers that are alike."""
    for _, group in groupby(layers, key=lambda layer: dataclasses.replace(layer, layer=0)):
        alike = list(group)
        yield alike[0].layer, alike[-1].layer, alike[0]
