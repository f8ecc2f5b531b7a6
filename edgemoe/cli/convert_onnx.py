"""`edgemoe convert --to onnx`: what of the command is asked of the export, and what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..extras import need_onnx
from ..units import format_size
from .status import say

if TYPE_CHECKING:
    from ..converters.convert import Progress
    from ..converters.onnx.export import Report
    from ..converters.source import Source


def refuse(options: Mapping[str, object]) -> None:
    """Raise UsageError for options that are GGUF's alone."""
    for name, value in options.items():
        if value:
            raise UsageError(f"`{name}` is for `--to gguf`", hint="docs/onnx.md says what an export can do")


def to_onnx(
    source: Source,
    out: Path,
    asked: Mapping[str, Any],
    shape: Mapping[str, Any],
    *,
    progress: Progress | None,
    json_output: bool,
) -> None:
    """asked: which bits, as the options of the same names. shape: the rest of the export's options."""
    need_onnx()
    from ..converters.onnx.export import Options, export

    report = export(source, out, Options(**_chosen(source, **asked), **shape), progress=progress)
    if json_output:
        print(json.dumps(_to_dict(report), indent=2))
        return
    experts = ", ".join(f"{n:,} of {bits} bits" for bits, n in report.bits.items())
    say(f"wrote {report.path}: {format_size(report.file_bytes)}, experts: {experts}")
    for note in report.notes:
        say(f"note: {note}")
    say("checked: the ONNX checker takes it, and ONNX Runtime has computed a token")


def _chosen(
    source: Source, type_name: str | None, allocation: str | None, bits: float | None, calibration: str | None
) -> dict[str, Any]:
    named = {"--type": type_name, "--allocation": allocation, "--bits": bits}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"`{given[0]}` and `{given[1]}` contradict each other", hint="give one of them")
    if bits is not None and calibration is None:
        raise UsageError("`--bits` needs `--calibration`", hint="`edgemoe calibrate MODEL --text FILE` makes the file")
    chosen: dict[str, Any] = {"type_name": type_name}
    facts: dict[str, Any] = {}
    if calibration is not None:
        from ..converters.imatrix import require_errors
        from ..converters.onnx.bits import allocate_widths
        from .calibration import load_calibration

        known = load_calibration(source, calibration)
        chosen["importance"] = known.importance
        facts["calibration"] = {**known.facts, "n_token": known.n_token}
        if bits is not None:
            chosen["allocation"] = allocate_widths(
                source, require_errors(known, Path(calibration), "--bits"), bits_a_weight=bits
            )
    if allocation is not None:
        from ..converters import allocation as allocations

        chosen["allocation"] = allocations.load(Path(allocation).expanduser())
    if "allocation" in chosen:
        facts["allocation"] = dict(chosen["allocation"].facts)
    return {**chosen, "facts": facts}


def _to_dict(report: Report) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "file_bytes": report.file_bytes,
        "n_node": report.n_node,
        "experts_by_bits": {str(bits): n for bits, n in report.bits.items()},
        "mean_bits": report.mean_bits,
        "notes": list(report.notes),
    }
