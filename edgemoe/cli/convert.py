"""`edgemoe convert`: a checkpoint or a GGUF to a GGUF in which every expert has its own type."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from ..units import format_size, parse_size
from .calibration import load_calibration
from .options import JsonOption, at_least
from .progress import Bar
from .status import note, say

if TYPE_CHECKING:
    from ..converters.convert import Options, Progress, Report
    from ..converters.source import Source


@dataclasses.dataclass(frozen=True)
class BitsOptions:
    """Which experts stay, and which bits go where."""

    type_name: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="One type for all experts: `Q4_K`.", show_default="keep, or Q4_K"),
    ] = None
    allocation: Annotated[
        str | None, typer.Option(metavar="FILE", help="A type for each expert, as docs/format.md says.")
    ] = None
    bits: Annotated[
        float | None, typer.Option(metavar="X", help="Mean bits of an expert weight; needs `--calibration`.")
    ] = None
    size: Annotated[str | None, typer.Option("--size", metavar="SIZE", help="Size of OUT; needs `--calibration`.")] = (
        None
    )
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What `edgemoe calibrate` measured, or llama.cpp's imatrix; sharpens every quantization.",
        ),
    ] = None
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            show_default=False,
            help="LOSSY: leave out this share of each layer's experts, those that matter least; needs `--calibration`.",
        ),
    ] = None
    dense_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type of all other matrices.", show_default="keep, or Q8_0"),
    ] = None
    uniform_per_layer: Annotated[
        bool, typer.Option("--uniform-per-layer", help="Stack the experts, as stock llama.cpp wants them.")
    ] = False


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", show_default=False, help="A GGUF file, or the folder of a checkpoint.")
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", show_default=False, help="The GGUF file to write; for ONNX, the folder.")
    ],
    which: BitsOptions,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="`gguf`, or `onnx` for ONNX Runtime.")] = "gguf",
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every tensor with SRC; of a file that exists, do only that.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the process.")] = "2GiB",
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", metavar="N", help="Workers.", show_default="all cores")
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="llama.cpp's name of a tokenizer's cut.", show_default="found out"),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Positions of an ONNX export, which has tables of them.", show_default="up to 32768"
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Write SRC with a tensor and a type for each expert. LOSSY with --prune, and wherever bits become fewer.

    Interrupted or killed, it goes on where it stopped when the same command is given again.
    """
    # Workers are threads of our own; numpy's beside them would spin for the same cores. Read as numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ..converters import convert as library

    at_least("--threads", threads, 1)
    at_least("--ctx", ctx, 1)
    source_path, out_path = Path(source).expanduser(), Path(out).expanduser()
    if to == "onnx":
        opened = library.open_source(source_path, pre_tokenizer=pre_tokenizer)
        shape = {"n_ctx": ctx, "memory": memory, "threads": threads, "overwrite": overwrite}
        _export(opened, out_path, which, shape, verify=verify, json_output=json_output)
        return
    if to != "gguf":
        raise UsageError(f"`{to}` is not a format to convert to", hint="use `gguf` or `onnx`")
    if ctx is not None:
        raise UsageError("`--ctx` is for `--to onnx`", hint="leave it out: a GGUF works with every context")
    only_verify = verify and out_path.exists() and not overwrite
    opened, chosen = _chosen(
        library.open_source(source_path, pre_tokenizer=pre_tokenizer), which, only_verify=only_verify
    )
    options = library.Options(
        type_name=which.type_name,
        uniform_per_layer=which.uniform_per_layer,
        dense_type=which.dense_type,
        memory=memory,
        threads=threads,
        overwrite=overwrite,
        **chosen,
    )
    try:
        with _progress(opened) as progress:
            report = None if only_verify else library.convert(opened, out_path, options, progress=progress)
            if verify:
                checked = library.verify_file(opened, out_path, options, progress=progress)
                report = checked if report is None else _both(report, checked)
    except KeyboardInterrupt:
        if not only_verify and not out_path.exists():
            note("stopped: the same command goes on from here")
        raise
    assert report is not None
    if json_output:
        print(json.dumps(_to_dict(report, options), indent=2))
    else:
        _print(report, options, converted=not only_verify)


def _export(
    source: Source, out: Path, which: BitsOptions, shape: dict[str, Any], *, verify: bool, json_output: bool
) -> None:
    """To a folder for ONNX Runtime. shape: the other options of the export."""
    from .convert_onnx import refuse, to_onnx

    only_gguf = {"--size": which.size, "--uniform-per-layer": which.uniform_per_layer, "--prune": which.prune}
    refuse({**only_gguf, "--verify": verify})
    asked = {name: getattr(which, name) for name in ("type_name", "allocation", "bits", "calibration")}
    with _progress(source) as progress:
        to_onnx(
            source, out, asked, {**shape, "dense_type": which.dense_type}, progress=progress, json_output=json_output
        )


def _chosen(source: Source, which: BitsOptions, *, only_verify: bool) -> tuple[Source, dict[str, Any]]:
    """The model without the experts that leave, and the part of the options that says which bits go where."""
    given = _given(which)
    from ..converters import allocation as allocations
    from ..converters.calibration import Calibration
    from ..converters.convert import COMPENSATED
    from ..converters.factors import Compensation

    chosen: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    known = None
    if which.calibration is not None:
        known = load_calibration(source, which.calibration)
        facts["calibration"] = {**known.facts, "n_token": known.n_token}
        if which.prune is not None:
            from ..converters.imatrix import require_uses
            from ..converters.prune import prune

            pruned = prune(source, require_uses(known, Path(which.calibration), "--prune"), which.prune)
            source, known = pruned.source, pruned.calibration
            facts["prune"] = pruned.facts
        chosen["importance"] = known.importance
        if isinstance(known, Calibration) and known.samples:
            chosen["factors"] = Compensation(source, known.samples).factor
            facts[COMPENSATED] = int(known.facts.get("n_sample", 0))
    if only_verify:  # the types are the file's
        return source, {**chosen, "facts": facts}
    if which.allocation is not None:
        chosen["allocation"] = allocations.load(Path(which.allocation).expanduser())
    elif known is not None and (which.bits is not None or which.size is not None):
        from ..converters.budget import allocation_for
        from ..converters.imatrix import require_errors

        file_bytes = None if which.size is None else parse_size(which.size)
        chosen["allocation"] = allocation_for(
            source,
            require_errors(known, Path(str(which.calibration)), given[0]),
            bits=which.bits,
            file_bytes=file_bytes,
            stacked=which.uniform_per_layer,
            dense_type=which.dense_type,
        )
    if "allocation" in chosen:
        facts["allocation"] = dict(chosen["allocation"].facts)
    return source, {**chosen, "facts": facts}


def _given(which: BitsOptions) -> list[str]:
    """The option that says which bits go where, if any. Raises UsageError for what does not go together."""
    named = {"--type": which.type_name, "--allocation": which.allocation, "--bits": which.bits, "--size": which.size}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"`{given[0]}` and `{given[1]}` contradict each other", hint="give one of them")
    if which.prune is not None and which.allocation is not None:
        raise UsageError(
            "`--allocation` numbers all experts, `--prune` leaves some out",
            hint="`--bits` chooses types for those that stay",
        )
    wanting = {"--prune": which.prune, "--bits": which.bits, "--size": which.size}
    for name, value in wanting.items():
        if value is not None and which.calibration is None:
            raise UsageError(
                f"`{name}` needs `--calibration`", hint="`edgemoe calibrate MODEL --text FILE` makes the file"
            )
    return given


_LONG = 1e9  # weights; in a log, shorter conversions say nothing until they are done


@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Progress | None]:
    """A bar on a terminal, a line a tenth of the way elsewhere."""
    if not sys.stderr.isatty() and source.n_weight < _LONG:
        yield None
        return
    bar = Bar()
    try:
        yield lambda what, done, total: bar(f"{what}, million weights", done // 10**6, total // 10**6)
    finally:
        bar.end()


def _both(converted: Report, checked: Report) -> Report:
    return dataclasses.replace(converted, check=checked.check)


def _to_dict(report: Report, options: Options) -> dict[str, Any]:
    check = report.check
    return {
        "path": str(report.path),
        "file_bytes": report.file_bytes,
        "n_tensor": report.n_tensor,
        "expert_bits": report.expert_bits,
        "bits": report.bits,
        "types": dict(report.types),
        "pruned": (options.facts or {}).get("prune"),
        "n_resumed": report.n_resumed,
        "verified": None if check is None else {"n_bytes": check.n_bytes, "relative_rms_error": dict(check.errors)},
    }


def _print(report: Report, options: Options, *, converted: bool) -> None:
    pruned = (options.facts or {}).get("prune")
    if converted:
        types = ", ".join(f"{n} {kind}" for kind, n in sorted(report.types.items(), key=lambda item: -item[1]))
        say(f"wrote {report.path}: {format_size(report.file_bytes)}, experts at {report.expert_bits:.2f} bits a weight")
        say(f"matrices: {types}")
        if pruned:
            left = f"{pruned['n_expert_left']} of {pruned['n_expert']} experts a layer are left"
            say(f"LOSSY: {left}; the others had {pruned['uses_lost']:.1%} of the uses on the calibration text")
        if report.n_resumed:
            say(f"{report.n_resumed} of them were there already, from a conversion that was interrupted")
    if report.check is not None:
        errors = ", ".join(f"{kind} {error:.2%}" for kind, error in report.check.errors.items())
        say(f"verified: every tensor is what its source becomes{f'; relative error {errors}' if errors else ''}")
