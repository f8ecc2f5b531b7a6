"""A whole benchmark: plan, measure the drive, run the repetitions, summarise into one JSON-ready report."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import edgemoe

from .. import _native
from .._abi import REPLAY_BELADY
from ..devices.memory import available_memory
from ..devices.profile import machine
from ..devices.storage import find_lanes, measure_storage
from ..errors import EdgeMoEError
from ..files import load_average
from ..runtime.engine.trace import read_trace
from ..runtime.formats import format_of
from ..runtime.setup import Setup
from .engines import Setting
from .exports import onnx_side
from .replay import misses
from .report import EXACT, OFF, OURS, REPACKED, STOCK, summarise
from .runner import Say, Side, Workload, git_revision, glance, limit_problem, run_all, run_once

_BUSY_CORES = 0.2  # more than this taken by other processes and a measurement on a few cores says little


def compare(
    path: str,
    workload: Workload,
    *,
    setup: Setup,
    n_repeat: int,
    against_stock: bool,
    against_off: bool,
    against_exact: bool,
    against_export: str | None = None,
    with_resident: bool,
    say: Say,
) -> dict[str, Any]:
    """Run it all. setup: its ctx is the workload's. say: gets lines of progress. Raises EdgeMoEError."""
    with edgemoe.open_model(path, setup.overrides) as model:
        plan = edgemoe.plan(model, setup.but(ctx=workload.n_ctx))
        traced = format_of(model).TRACED
        files = format_of(model).files(model, say)
        largest = max(files, key=lambda file: file.stat().st_size)
        lanes = find_lanes(largest, model.block_bytes, max_bytes=plan.cache_bytes)
        disk = measure_storage(largest, model.block_bytes, n_lane=lanes, fresh=True)
        model_facts = asdict(model.info)

    problem = limit_problem(plan.budget_bytes)
    if problem:
        say(f"NO KERNEL LIMIT: {problem}; llama.cpp may use all of the machine's memory")
    limit_bytes = 0 if problem else plan.budget_bytes
    shape = {"memory": plan.budget_bytes, "ctx": plan.n_ctx, "threads": plan.n_threads}
    setting = Setting(path, setup.but(**shape))
    sides = [Side(OURS, OURS, setting, limit_bytes, workload.n_decode)]
    if against_off:
        sides.append(Side(OFF, OURS, Setting(path, setting.setup.but(prefetch="off")), limit_bytes, workload.n_decode))
    if against_exact:
        exact = Setting(path, setting.setup.but(lossy=0.0))
        sides.append(Side(EXACT, OURS, exact, limit_bytes, workload.n_decode))
    if against_stock:
        _native.llama_package()  # raises where there is none, before anything is measured
        sides.append(Side(STOCK, STOCK, setting, limit_bytes, workload.n_stock_decode))
        if plan.fraction >= 1:
            sides += _repacked(setting, workload, files, say)
    if against_export:
        side, more = onnx_side(against_export, setting, limit_bytes, workload.n_decode, say)
        sides.append(side)
        files += more

    resident = None
    if with_resident and plan.fraction < 1:
        resident = _resident(setting, plan.resident_bytes, replace(workload, warm=True), files, say)
    traced = traced and not setup.lossy  # what was left out is in no trace
    best = _best(setting, limit_bytes, workload, files, say) if plan.fraction < 1 and traced else None
    records = run_all(sides, workload, files, n_repeat, say)
    busy = max(record["other_cores"] for record in records)
    if busy > _BUSY_CORES:
        say(f"THE MACHINE WAS BUSY: other processes took up to {busy:.1f} cores during a repetition")
    return {
        "format": 1,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "argv": sys.argv[1:],
        "version": edgemoe.__version__,
        "git": git_revision(),
        "machine": {**machine(path), "load_average": load_average()},
        "model": model_facts,
        "plan": plan.to_dict(),
        "workload": {name: value for name, value in asdict(workload).items() if name != "text"},
        "n_repeat": n_repeat,
        "limit_problem": problem,
        "disk": asdict(disk),
        "resident": resident,
        "runs": records,
        "best_bytes_per_token": best,
        "summary": summarise(
            records,
            workload.n_prefill,
            disk_bytes_per_s=min(disk.bytes_per_s, setup.read_bytes_per_s or disk.bytes_per_s),
            resident=resident,
            best_bytes_per_token=best,
        ),
    }


def _repacked(setting: Setting, workload: Workload, files: list[Path], say: Say) -> list[Side]:
    """Stock with repacked weights, where it runs at all; without a limit, since it has the weights twice."""
    side = Side(REPACKED, REPACKED, setting, 0, workload.n_stock_decode)
    try:
        run_once(side, replace(workload, n_prefill=0), files)
    except EdgeMoEError as error:
        say(f"llama.cpp with repacked weights does not run here, and is left out: {error.message}")
        return []
    return [side]


def _best(setting: Setting, limit_bytes: int, workload: Workload, files: list[Path], say: Say) -> float:
    """Bytes a token that Belady's optimum would read of the same experts with the same slots: one traced run."""
    with tempfile.TemporaryDirectory(prefix="edgemoe-bench.") as folder:
        path = os.path.join(folder, "trace")
        untimed = replace(workload, n_prefill=0)
        record = run_once(Side("traced", OURS, setting, limit_bytes, workload.n_decode), untimed, files, trace=path)
        trace = read_trace(path).decode_visits()
    first = (1 + workload.n_warmup) * len(trace.n_expert)
    n_use, n_miss = misses(trace, REPLAY_BELADY, record["facts"]["n_slot"], from_visit=first)
    total = sum(trace.n_expert)
    expert_bytes = sum(n * size for n, size in zip(trace.n_expert, trace.about["expert_bytes"], strict=True)) / total
    say(f"Belady's optimum with {record['facts']['n_slot']} slots: {1 - n_miss / max(1, n_use):.1%} hits")
    return float(n_miss * expert_bytes / workload.n_decode)


def _resident(
    setting: Setting, resident_bytes: int, workload: Workload, files: list[Path], say: Say
) -> dict[str, Any] | None:
    """One run with every expert in memory and no limit: what the computation alone takes. None without the memory."""
    if available_memory() < resident_bytes:
        say("the machine has no memory for an all-resident run: the bound is the drive's alone")
        return None
    roomy = replace(setting, setup=setting.setup.but(memory=resident_bytes))
    record = run_once(Side("resident", OURS, roomy, 0, workload.n_decode), workload, files)
    say(f"all experts resident: {glance(record)}")
    return record
