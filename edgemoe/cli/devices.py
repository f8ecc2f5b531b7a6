"""`edgemoe devices`: what this machine computes with and reads from, and how fast."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..places import BUILTIN
from ..units import format_size
from .generate import find
from .options import JsonOption, ModelArgument
from .status import note, say

if TYPE_CHECKING:
    from ..devices.survey import Survey


def devices(
    model: ModelArgument = BUILTIN,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the drive again, not from memory.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Describe this machine: processor, memory, the drive that MODEL lies on, GPUs. Measured once and remembered."""
    from ..devices.survey import survey

    path = find(model)
    if sys.stderr.isatty():
        note("measuring processor and drive")
    found = survey(path, fresh=fresh)
    if json_output:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        say(*_lines(found))


def _lines(found: Survey) -> list[str]:
    from ..devices.gpu import install_line

    kernels = ", ".join(f"{speed / 1e9:.1f} GB/s ({name.upper()})" for name, speed in found.compute.items())
    limit = f", limited to {format_size(found.limit_bytes)}" if found.limit_bytes < found.total_bytes else ""
    drive = found.drive
    way = "past the page cache" if drive.small.direct_io else "through the page cache (no O_DIRECT): memory's speed"
    large = ", ".join(f"{speed.bytes_per_s / 1e9:.2f} ({speed.n_lane})" for speed in drive.large)
    lines = [
        f"cpu      {found.cpu}, {found.n_core} cores",
        f"         {' '.join(found.isa) or 'instruction sets not known'}",
        f"         decode kernels read weights at {kernels}",
        f"memory   {format_size(found.total_bytes)}{limit}, {format_size(found.available_bytes)} available",
        f"drive    {drive.device or 'not known'} {drive.filesystem} at {drive.mount_point or '?'}, {way}",
        f"         1 MiB reads, GB/s (under way): {large}; an engine keeps {drive.lanes}",
        f"         4 KiB read: {drive.small.latency_s * 1e6:.0f} µs",
    ]
    for gpu in found.gpus:
        memory = "the system's memory" if gpu.unified else f"{format_size(gpu.free_bytes)} of it free"
        size = format_size(gpu.total_bytes)
        lines.append(f"gpu      {gpu.description} ({gpu.backend}), {size}, {memory}: `--device {gpu.backend.lower()}`")
    if not found.gpus:
        built = ", ".join(found.backends)
        lines.append(f"gpu      none that ggml finds; llama.cpp was built with: {built}")
        lines.append(f"         with Vulkan, for example: `{install_line('vulkan')}`")
    return lines
