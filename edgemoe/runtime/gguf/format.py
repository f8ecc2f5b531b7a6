"""GGUF behind `formats.Format`: llama.cpp computes, our streamer feeds the experts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import _native
from ..._abi import Setup as NativeSetup
from ...devices.gpu import Gpu
from ...devices.gpu import choose as choose_gpu
from ...devices.profile import contradict, profile
from ...devices.storage import N_LANE, find_lanes
from ...errors import BudgetError, FormatError, UnsupportedError, UsageError
from ...paths import cache_dir
from ...units import MIB
from ..budget.gpu_plan import gpu_budget, plan_for_gpu
from ..budget.placement import Placement
from ..budget.planner import Plan, Speeds, finish, predict
from ..engine import rates
from ..find.local import split_set
from ..find.mmproj import OFF
from ..model import Model, ModelInfo
from ..setup import Progress, Setup
from ..text.template import first_rendering_bytes
from ..text.template import resident_bytes as template_bytes
from .backend import NativeBackend
from .model import GgufModel, open_gguf
from .shell import shell_for

TRACED = True

_LEAST_TOKENS, _LEAST_READ = 16, 64 * MIB  # after which a run tells something of speeds


def open(path: Path, override_kv: tuple[str, ...]) -> Model | None:
    """Every file that is no other format's. Raises what `open_gguf` raises."""
    return open_gguf(path, override_kv)


def check(model: Model, setup: Setup) -> None:
    """Raise UnsupportedError for a reader that the file system does not take, UsageError for another model."""
    if setup.overrides != model.override_kv:
        raise UsageError(
            "the model was opened with other metadata than the setup overrides",
            hint="give `override_kv` to `open_model` as well",
        )
    if setup.reader == "uring" and not model.info.direct_io:
        raise UnsupportedError(
            f"io_uring needs O_DIRECT, which `{model.path}` refuses", hint="use the reader `threads`"
        )


def plan(model: GgufModel, setup: Setup, *, measure: bool) -> Plan:
    """See `Format.plan`. With a GPU the host's part is planned for each placement that is tried."""
    later_bytes = first_rendering_bytes(model.chat_template)
    gpu = choose_gpu(setup.device)  # its driver is awake from here on, and part of the process
    reader = "uring" if model.info.direct_io and _native.io_uring_allowed() else "threads"

    def spend(placement: Placement, host_bytes: int, like: Plan | None) -> Plan:
        decided: dict[str, object] = {"gpu_experts": placement.experts, "n_gpu_layer": placement.n_gpu_layer}
        process_bytes = _native.rss_bytes() + template_bytes() + host_bytes
        decided |= {"device": _number(gpu), "process_bytes": process_bytes}
        if like:  # the same context, of which the GPU has a part already
            decided |= {"n_ctx": like.n_ctx, "n_ubatch": like.n_ubatch}
        native = setup.native(later_bytes=later_bytes, **decided)
        info = model.info if gpu is None else model.host_info(native)
        chosen = _native.plan_make(model.handle, os.fspath(cache_dir()), native)
        try:
            made = finish(info, chosen, None, n_ctx=setup.ctx, n_sequence=setup.parallel, reader=reader)
            made = replace(made, page_cache=setup.page_cache)
        except BudgetError as error:
            if setup.mmproj == OFF:
                raise
            hint = f"{error.hint}, or `--mmproj off`: the picture encoder `{setup.mmproj}` has a part in it"
            raise BudgetError(error.message, hint=hint, smallest=error.smallest) from None
        except (FormatError, UnsupportedError) as error:  # the encoder's
            if setup.mmproj == OFF or error.hint:
                raise
            raise type(error)(error.message, hint="`--mmproj off` leaves pictures out") from None
        return made if gpu else _with_speed(model, made, measure=measure)

    if gpu is None:
        return spend(Placement(0), 0, None)
    return plan_for_gpu(model, gpu, gpu_budget(gpu, setup), spend, setup)


def host_info(model: GgufModel, plan: Plan) -> ModelInfo:
    """See `Format.host_info`."""
    return model.info if not plan.device else model.host_info(_decided(Setup(), plan))


def files(model: GgufModel, progress: Progress | None) -> list[Path]:
    """See `Format.files`."""
    return split_set(model.path)


def backend(model: GgufModel, setup: Setup, plan: Plan, progress: Progress | None) -> NativeBackend:
    """See `Format.backend`."""
    native = _decided(setup, plan)
    shell = shell_for(model, native, progress=progress)
    if progress:
        progress(f"loading {model.info.name}")
    native.n_read_lane = setup.read_lanes or _lanes(model, plan)
    path = None if shell is None else os.fspath(shell)
    handle = _native.engine_open(model.handle, path, native, plan.cache_min_bytes)
    return NativeBackend(handle, partial(_compare, model, plan, model.block_bytes, model.main_type))


def _decided(setup: Setup, plan: Plan) -> NativeSetup:
    return setup.native(
        n_ctx=plan.n_ctx,
        n_ubatch=plan.n_ubatch,
        n_threads=plan.n_threads,
        device=plan.device_number,
        n_gpu_layer=plan.n_gpu_layer,
        gpu_experts=plan.gpu_experts,
        row_cache_bytes=plan.row_cache_bytes,
    )


def _compare(model: Model, plan: Plan, block_bytes: int, main_type: str, stats: Mapping[str, Any]) -> None:
    """What a run tells of the speeds that its plan expected. stats: the fields of `emoe_stats`."""
    work = (model.info.dense_token_bytes + model.info.token_bytes) * stats["n_decode"]
    known = stats["n_decode"] >= _LEAST_TOKENS and not plan.device
    of_drive = stats["read_bytes"] > _LEAST_READ and not stats["page_cache"]
    read = stats["read_bytes"] * 1e9 / stats["drive_ns"] if of_drive else None
    compute = work * 1e9 / stats["decode_ns"] if known else None
    with suppress(OSError):  # the file may be gone by now
        contradict(
            model.path, block_bytes, main_type, plan.n_threads, read_bytes_per_s=read, compute_bytes_per_s=compute
        )


def _number(gpu: Gpu | None) -> int:
    return 0 if gpu is None else gpu.index + 1


def _lanes(model: Model, plan: Plan) -> int:
    """Reads under way at once. Measured in the memory that becomes the cache's."""
    streams = plan.n_slot < plan.n_expert_total
    return find_lanes(model.path, model.block_bytes, max_bytes=plan.cache_bytes) if streams else N_LANE


def speeds_of(model: Model, made: Plan, *, measure: bool = True) -> Speeds | None:
    """The speeds of drive and kernels, and the hits of earlier runs; None where they are not known nor measured."""
    device = profile(model.path, model.block_bytes, model.main_type, n_threads=made.n_threads, measure=measure)
    if device.storage is None or device.compute_bytes_per_s is None:
        return None
    return Speeds(device.storage.bytes_per_s, device.compute_bytes_per_s, rates.hit_rate(model.info, made.n_slot))


def _with_speed(model: Model, made: Plan, *, measure: bool) -> Plan:
    """The plan with the speed to expect, where speeds are known or may be measured."""
    speeds = speeds_of(model, made, measure=measure)
    return replace(made, prediction=predict(model.info, made.fraction, speeds)) if speeds else made
