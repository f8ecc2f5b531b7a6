"""`edgemoe calibrate`: what a model's experts matter, for `edgemoe convert` to give each its bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..places import BUILTIN
from ..units import parse_size
from .generate import find
from .options import ModelArgument, ThreadsOption, at_least, output_file
from .progress import Bar
from .status import say

if TYPE_CHECKING:
    from ..converters.calibration import Calibration

_WINDOWS, _WINDOWS_FOR_LOSSY = 64, 16
BESIDE = ".calibration"  # where `--lossy` looks (native/src/llama/prices.cpp)


def calibrate(
    model: ModelArgument = BUILTIN,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="The calibration: a GGUF.", show_default="MODEL.calibration"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", show_default=False, help="Text like what the model will read; may be repeated."),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Windows computed, from all over the texts.", show_default="64, with --for-lossy 16"
        ),
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", metavar="N", help="Tokens a window.")] = 512,
    types: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Quantizations to measure: `IQ2_S,Q4_K,Q8_0`.", show_default="all that fit"),
    ] = None,
    for_lossy: Annotated[
        bool, typer.Option("--for-lossy", help="Only what `--lossy` needs: no quantization is measured.")
    ] = False,
    moments: Annotated[
        str,
        typer.Option(
            metavar="SIZE", help="Memory for inputs that are kept, to make rounding errors good; 0: round plainly."
        ),
    ] = "0",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the whole process.")] = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Learn from a text how much each expert matters and what each quantization costs it.

    Killed, it goes on where it was when started again with the same arguments.
    """
    at_least("--windows", windows, 1)
    at_least("--ctx", ctx, 16)
    at_least("--threads", threads, 1)
    if not text:
        raise UsageError("there is no text", hint="give `--text FILE`: some 100 kB like what the model will read")
    if for_lossy and types is not None:
        raise UsageError("`--for-lossy` measures no quantization", hint="leave out `--types`, or `--for-lossy`")
    source = find(model)
    path = output_file(out or f"{source}{BESIDE}")
    assert path is not None

    # Quantizers run in threads of our own; numpy's beside them would spin for the same cores. Read as numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Before an engine is planned: what these imports take is part of its process.
    from ..bench.runner import read_text
    from ..quality.calibrate import Request, calibrate
    from ..runtime.setup import Setup

    bar = Bar()
    try:
        found = calibrate(
            Request(
                model=str(source),
                out=path,
                texts=[(Path(name).name, read_text(name)) for name in text],
                n_window=windows or (_WINDOWS_FOR_LOSSY if for_lossy else _WINDOWS),
                n_ctx=ctx,
                for_lossy=for_lossy,
                moments=0 if for_lossy else parse_size(moments),
                types=types.replace(",", " ").split() if types else None,
                setup=Setup(memory=memory, threads=threads),
            ),
            bar,
        )
    finally:
        bar.end()
    say(*lines(found))


def lines(found: Calibration) -> list[str]:
    from ..converters.allocate import super_experts

    tokens = [n for layer in found.layers.values() for n in layer.stats[:, 0]]
    unused = sum(n == 0 for n in tokens)
    guarded = super_experts(found)
    names = ", ".join(f"layer {layer} expert {expert}" for layer, expert in guarded)
    ranked = sorted(found.sensitivity.items(), key=lambda pair: -pair[1])
    return [
        f"{len(tokens):,} experts in {len(found.layers)} layers, {found.n_token:,} tokens"
        + (f"; {unused} experts were never used: give more text" if unused else ""),
        f"super experts  {names or 'none'}",
        _price_line(found),
        f"errors matter most in layers {', '.join(str(layer) for layer, _ in ranked[:3])}, "
        f"least in {', '.join(str(layer) for layer, _ in ranked[-3:])}",
    ]


def _price_line(found: Calibration) -> str:
    prices = found.prices
    if prices is None:
        return "lossy  not to be had: what leaving out experts costs cannot be measured on this model"
    return f"lossy  leaving out experts was priced from {prices.nats[0]:.3f} to {prices.nats[-1]:.3f} nats a token"
