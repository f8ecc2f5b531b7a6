"""`edgemoe shrink`: what a model could be made into for a memory budget, at which price, and doing it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..units import format_share, format_size, format_speeds
from .calibrate import BESIDE
from .calibration import load_calibration
from .convert import BitsOptions, convert
from .generate import find
from .options import JsonOption, ThreadsOption, at_least
from .status import say

if TYPE_CHECKING:
    from ..quality.shrink import Way


def shrink(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A GGUF file, or its name.")],
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the whole process that will run it.")] = "auto",
    price: Annotated[float, typer.Option(metavar="NATS", help="Divergence (KL) a token that may be paid.")] = 0.05,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What `edgemoe calibrate` measured.", show_default="MODEL.calibration"),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="OUT", show_default=False, help="Write the fastest within the price."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The same, beside MODEL, without a question.")] = False,
    ctx: Annotated[
        int | None, typer.Option("--ctx", "-c", metavar="N", help="Tokens of context.", show_default="as memory allows")
    ] = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show what reaches which speed in a memory budget at which divergence, predicted, and make the fastest. LOSSY."""
    at_least("--ctx", ctx, 1)
    at_least("--threads", threads, 1)
    if not 0 < price < math.inf:
        raise UsageError(f"a price of {price:g} nats buys nothing", hint="use `--price 0.05`")
    if json_output and (out or yes):
        raise UsageError("`--json` prints the table and writes no model", hint="leave it out, or `--out` and `--yes`")
    source = find(model)
    if source.is_dir():
        raise UsageError(f"`{source}` is a folder", hint="`shrink` takes a GGUF file")
    known = Path(calibration).expanduser() if calibration else source.with_name(source.name + BESIDE)
    if not known.exists():
        raise UsageError(
            f"there is no calibration `{known}`", hint=f"`edgemoe calibrate {source} --text FILE` makes one"
        )
    found = _ways(source, known, price, {"memory": memory, "ctx": ctx, "threads": threads})
    from ..quality.shrink import best

    chosen = best(found, price)
    if json_output:
        print(json.dumps({"ways": [way.to_dict() for way in found], "best": found.index(chosen)}, indent=2))
        return
    _print(found, chosen, price)
    _make(source, known, chosen, memory, out, yes=yes)


def _ways(source: Path, known: Path, price: float, asked: dict[str, Any]) -> list[Way]:
    import edgemoe

    from ..converters.convert import open_source
    from ..converters.imatrix import require_uses
    from ..errors import UnsupportedError
    from ..quality.shrink import ways
    from ..runtime.gguf.format import speeds_of

    opened = open_source(source)
    measured = require_uses(load_calibration(opened, str(known)), known, "shrink")
    with edgemoe.open_model(source) as model:
        made = edgemoe.plan(model, edgemoe.Setup(**asked))
        speeds = speeds_of(model, made)
        if speeds is None:
            raise UnsupportedError("no speed can be predicted: drive or kernels could not be measured here")
        return ways(opened, model.info, made, speeds, measured, price)


def _print(found: Sequence[Way], chosen: Way, price: float) -> None:
    rows = [("", "nats", "experts", "in memory", "read a token", "decode")]
    for way in found:
        mark = "*" if way is chosen else " "
        over = " " if way.nats <= price else "!"
        rows.append(
            (
                f"{mark} {_name(way)}",
                f"{way.nats:.3f}{over}",
                format_size(way.expert_bytes),
                f"{way.fraction:.0%}",
                format_size(way.read_bytes),
                format_speeds(way.low, way.high),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    say(*("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows))
    say(f"* the fastest within {price:g} nats a token; ! above it. Predicted: `edgemoe eval --against` measures")


def _name(way: Way) -> str:
    return {
        "exact": "as it is",
        "lossy": f"--lossy {way.amount:g}",
        "bits": f"--bits {way.amount:g}",
        "prune": f"--prune {format_share(way.amount)}",
    }[way.kind]


def _make(source: Path, known: Path, chosen: Way, memory: str, out: str | None, *, yes: bool) -> None:
    """Write what was chosen, if that is a file and somebody wants it."""
    if chosen.kind in ("exact", "lossy"):
        option = f" {_name(chosen)}" if chosen.kind == "lossy" else ""
        say(f"nothing is to be written: `edgemoe chat {source} --memory {memory}{option}`")
        return
    suffix = f"-{chosen.kind}{chosen.amount * (100 if chosen.kind == 'prune' else 1):.3g}.gguf"
    path = out or str(source.with_name(source.stem + suffix))
    if out is None and not yes:
        if not sys.stdin.isatty():
            say(f"to write it: `edgemoe convert {source} {path} {_name(chosen)} --calibration {known}`")
            return
        if not typer.confirm(f"write {path}?"):
            return
    which = BitsOptions(
        bits=chosen.amount if chosen.kind == "bits" else None,
        prune=float(format_share(chosen.amount)) if chosen.kind == "prune" else None,
        calibration=str(known),
    )
    convert(str(source), path, which)
