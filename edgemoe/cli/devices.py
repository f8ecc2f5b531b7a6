"""`edgemoe devices`: what this machine has to run a model on, measured where that takes a moment, remembered after."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..places import BUILTIN
from .generate import find
from .options import JsonOption, ModelArgument

_LANES = (1, 2, 4, 8, 16)  # reads under way at once


def devices(
    model: ModelArgument = BUILTIN,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure the storage anew.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Show processor, memory, GPUs, and the speed of the storage that a model lies on."""
    found = survey(str(find(model)), fresh=fresh)
    if json_output:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines(found)))


def survey(path: str, *, fresh: bool) -> dict[str, Any]:
    """This machine as a JSON object; sizes in bytes, speeds in bytes a second."""
    from dataclasses import asdict

    from ..devices.cpu import cpu_name, isa_flags, physical_cores
    from ..devices.gpu import gpus
    from ..devices.memory import available_memory, memory_limit, total_memory
    from ..devices.storage import describe, measure_storage
    from ..runtime.model import open_model

    with open_model(path) as opened:
        block_bytes, files = opened.block_bytes, str(opened.path)
    speeds = [measure_storage(files, block_bytes, n_lane=n, fresh=fresh) for n in _LANES]
    found = [gpu.to_dict() for gpu in gpus()]
    return {
        "cpu": {"name": cpu_name(), "n_core": physical_cores(), "isa": list(isa_flags())},
        "memory": {
            "total_bytes": total_memory(),
            "limit_bytes": memory_limit(),
            "available_bytes": available_memory(),
            "unified": any(gpu["unified"] for gpu in found),
        },
        "storage": {**asdict(describe(files)), "path": files, "reads": [asdict(speed) for speed in speeds]},
        "gpus": found,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The survey as text, for people."""
    from ..devices.gpu import install_line
    from ..units import format_rate, format_size

    cpu, memory, storage = found["cpu"], found["memory"], found["storage"]
    rows = [
        f"{'processor':<12}{cpu['name']}, {cpu['n_core']} cores: {' '.join(cpu['isa'])}",
        f"{'memory':<12}{format_size(memory['total_bytes'])}, usable {format_size(memory['limit_bytes'])}, "
        f"available {format_size(memory['available_bytes'])}",
        f"{'storage':<12}{storage['filesystem']} on {storage['device']}, "
        + ("direct reads" if storage["reads"][0]["direct_io"] else "reads through the page cache")
        + f" of {format_size(storage['reads'][0]['block_bytes'])}",
    ]
    for read in storage["reads"]:
        speed = f"{format_rate(read['bytes_per_s'])}, {read['latency_s'] * 1e6:,.0f} µs a read"
        rows.append(f"{'':<12}{read['n_lane']:>2} at once: {speed}")
    for gpu in found["gpus"]:
        kind = "of the host" if gpu["unified"] else "of its own"
        free = f"{format_size(gpu['free_bytes'])} free of {format_size(gpu['total_bytes'])} {kind}"
        rows.append(f"{'GPU':<12}{gpu['name']} ({gpu['backend']}): {gpu['description']}, {free}")
    if not found["gpus"]:
        rows.append(f"{'GPU':<12}none that this llama.cpp can use; for one: {install_line('vulkan')}")
    return rows
