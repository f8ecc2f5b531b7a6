"""`edgemoe replay`: what a recorded trace says about caches of any size, policies, and the model's locality."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import StorageError, UsageError
from ..printable import plain
from ..units import format_size, parse_size
from .options import JsonOption

_DEFAULT = "16,32,59,80"


def replay(
    trace: Annotated[str, typer.Argument(metavar="TRACE", show_default=False, help="A file that `--trace` wrote.")],
    fractions: Annotated[
        str, typer.Option("--experts", metavar="LIST", help="Cache sizes to try, in percent of all experts.")
    ] = _DEFAULT,
    bandwidth: Annotated[
        str | None,
        typer.Option(metavar="SIZE", show_default=False, help="A drive's bytes a second: adds bounds in tok/s."),
    ] = None,
    compute_ms: Annotated[
        float | None,
        typer.Option("--compute", metavar="MS", show_default=False, help="Time of a token with all experts in memory."),
    ] = None,
    skip: Annotated[int, typer.Option(metavar="N", help="Tokens that only fill the cache.")] = 16,
    timeline: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default=False, help="Write a timeline for chrome://tracing or Perfetto."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay recorded routing through every cache policy, beside Belady's optimum."""
    from ..bench.replay import locality, table
    from ..bench.replay import timeline as make_timeline
    from ..runtime.engine.trace import read_trace

    sizes = _fractions(fractions)
    if compute_ms is not None and not 0 < compute_ms < math.inf:
        raise UsageError(f"`--compute {compute_ms}` makes no sense", hint="give milliseconds: `--compute 12.5`")
    speed = None if bandwidth is None else float(parse_size(bandwidth))
    whole = read_trace(trace)
    if timeline is not None:
        try:
            Path(timeline).expanduser().write_text(json.dumps(make_timeline(whole)), "utf-8")
        except OSError as error:
            raise StorageError(f"cannot write `{timeline}`: {error.strerror}", hint="choose another place") from None
    decode = whole.decode_visits()
    n_layer = len(decode.n_expert)
    if len(decode.visit_layer) <= max(0, skip) * n_layer:
        raise UsageError(
            f"the trace has {len(decode.visit_layer) // n_layer} decoded tokens, {skip} of them only fill the cache",
            hint="record more, or use a smaller `--skip`",
        )
    compute_s = None if compute_ms is None else compute_ms / 1e3
    rows = table(decode, sizes, from_visit=max(0, skip) * n_layer, bytes_per_s=speed, compute_s=compute_s)
    local = locality(decode)
    if as_json:
        print(json.dumps({"about": decode.about, "locality": local, "policies": rows}))
        return
    _print(decode.about, local, rows, sizes)


def _fractions(text: str) -> list[float]:
    try:
        values = [float(part.strip().rstrip("%")) / 100 for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= 1 for value in values):
        raise UsageError(f"`--experts {text}` makes no sense", hint=f"give percents: `--experts {_DEFAULT}`")
    return values


def _print(about: dict[str, Any], local: dict[str, Any], rows: list[dict[str, Any]], sizes: list[float]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{plain(about['model'])}: {local['n_token']} decoded tokens, {sum(about['n_expert'])} experts")
    grid = Table("hits", *(f"{size:.0%} of experts" for size in sizes), box=None, padding=(0, 3, 0, 0))
    for row in rows:
        cells = []
        for cell in row["cells"]:
            bound = f", {cell['tok_s']:.3g} tok/s" if "tok_s" in cell else ""
            cells.append(f"{cell['hit_rate']:.1%}, {format_size(round(cell['bytes_per_token']))}{bound}")
        grid.add_row(row["policy"], *cells)
    console.print(grid)
    if local["srp"] is None:
        console.print(f"locality: fewer than {local['segment']} tokens, too few to say")
        return
    sch = ", ".join(f"{float(ratio):g}k a layer {value:.0%}" for ratio, value in local["sch"].items())
    console.print(
        f"locality over {local['segment']} tokens: SRP {local['srp']:.0%} (the best k experts a layer), SCH {sch}; "
        f"neighbouring tokens share {local['neighbours']:.0%} of their experts"
    )
    console.print(f"verdict: {_verdict(local)}")


def _verdict(local: dict[str, Any]) -> str:
    """In words, by SCH at twice the top-k, the size that 2505.16056 recommends."""
    best = local["sch"].get("2") or 0.0
    wants = next((ratio for ratio, value in local["sch"].items() if value and value >= 0.8), None)
    size = f"a cache of {float(wants):g} times what a token uses holds most of it" if wants else (
        "even three times what a token uses holds less than 80 % of it: give it memory, or a fast drive"
    )  # fmt: skip
    word = (
        "suits streaming" if best >= 0.75 else "streams with many misses" if best >= 0.5 else "hardly suits streaming"
    )
    return f"the model {word}; {size}"
