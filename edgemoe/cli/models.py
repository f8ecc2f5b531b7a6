"""`edgemoe models`: the models that are on this machine, and which of them run here, how fast."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..printable import plain
from ..units import format_exact, format_size, format_speeds, parse_memory
from .options import JsonOption
from .status import note

if TYPE_CHECKING:
    from ..runtime.find.local import Found
    from ..runtime.judge import Verdict

_WIDTH = 160  # of the table where no terminal says


def models(
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Judge them for this budget: `6GiB`, `75%` or `auto`.")
    ] = "auto",
    json_output: JsonOption = False,
) -> None:
    """List the models on this machine: size, whether each runs in its memory, predicted speed.

    Looks where other programs keep theirs, Hugging Face, LM Studio, Ollama and llama.cpp, and in the folders of
    $EDGEMOE_MODELS. Nothing is copied, nothing is downloaded.
    """
    import edgemoe

    from ..runtime.judge import judge

    parse_memory(memory)
    judged = []
    for found in edgemoe.find_models():
        if sys.stderr.isatty():
            note(f"looking at {found.name}")
        judged.append((found, judge(found, memory=memory)))
    if json_output:
        print(json.dumps([_to_dict(found, verdict) for found, verdict in judged], indent=2))
    else:
        _print(judged, memory)


def _to_dict(found: Found, verdict: Verdict) -> dict[str, Any]:
    plan = verdict.plan
    return {
        **dataclasses.asdict(found),
        "path": str(found.path),
        "kind": verdict.kind,
        "reason": verdict.reason,
        "n_expert_total": verdict.n_expert_total,
        "smallest_bytes": verdict.smallest_bytes,
        "plan": plan.to_dict() if plan else None,
    }


def _print(judged: list[tuple[Found, Verdict]], memory: str) -> None:
    if not judged:
        print("no models found; `edgemoe chat hf:owner/repo` downloads one, `edgemoe chat model.gguf` takes a path")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "size", "experts", "smallest", "here", "decode", "where", box=None, padding=(0, 2, 0, 0))
    for found, verdict in sorted(judged, key=lambda pair: not pair[1].n_expert_total):
        table.add_row(*map(plain, (found.name, format_size(found.n_bytes), *_cells(verdict), found.place)))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)
    print("\n`edgemoe chat NAME` talks with one.", end=" ")
    print(f"smallest: the least `--memory` that works; here: with `--memory {memory}`")


def _cells(verdict: Verdict) -> tuple[str, str, str, str]:
    """Experts, smallest budget, what fits here, predicted speed."""
    plan = verdict.plan
    if not verdict.n_expert_total:
        return "", "", f"{verdict.kind}: {verdict.reason}", ""
    experts, smallest = f"{verdict.n_expert_total:,}", format_exact(verdict.smallest_bytes)
    if plan is None:
        return experts, smallest, "too little memory", ""
    fits = "all experts fit" if plan.fraction >= 1 else f"{plan.fraction:.0%} of them fit"
    speed = format_speeds(plan.prediction.low, plan.prediction.high) if plan.prediction else "not known"
    return experts, smallest, fits, speed
