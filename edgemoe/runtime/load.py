"""From a path and a budget to a plan, and to an engine: the order in which things are opened, measured and refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .. import _native
from .._abi import EngineParams
from ..devices.cpu import physical_cores
from ..devices.gpu import Gpu, choose
from ..devices.memory import available_memory, memory_limit, process_memory
from ..devices.profile import profile
from ..devices.storage import N_LANE, find_lanes
from ..errors import UnsupportedError, UsageError
from ..units import Memory, format_exact, format_size, parse_memory, parse_size
from .engine.backend import NativeBackend
from .engine.draft import MAX_DRAFT, parse_draft
from .engine.engine import Engine
from .budget.gpu_plan import plan_for_gpu
from .gguf.model import Model, context_params, is_export, open_model
from .budget.placement import Placement, on_host
from .budget.planner import Budget, Plan, Speeds, resident_bytes
from .budget.planner import plan as make_plan
from .text.prompt import first_rendering_bytes
from .gguf.shell import Progress, shell_for
from .gguf.sizes import SizeBook
from .engine.stats import READERS

POLICIES = ("next-use", "lfru", "lru", "lfu", "mrs")
"""Names of EMOE_POLICY_*, by number."""
PREFETCH = ("auto", "off", "on")
"""Names of EMOE_PREFETCH_*, by number."""

_AUTO_SHARE = 0.85  # of what is available now; the rest is the user's other programs'
_MAX_THREADS = 512  # of ggml
_MAX_OUTPUTS = 1 << 16


def load(
    path: str | os.PathLike[str],
    *,
    memory: str | int = "auto",
    ctx: int | None = None,
    threads: int | None = None,
    n_ubatch: int | None = None,
    n_outputs: int = 1,
    policy: str = "next-use",
    prefetch: str = "auto",
    draft: str | int = "off",
    warm_start: bool = True,
    buffered: bool = False,
    reader: str = "auto",
    read_lanes: int = 0,
    read_limit: str | int | None = None,
    kv_type: str = "f16",
    device: str = "cpu",
    gpu_memory: str | int | None = None,
    gpu_experts: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Open a model for generation inside a memory budget; close it, or use it in a `with` statement.

    path: a GGUF file, any file of a split set, the folder of an ONNX export, or a model's name (see `edgemoe.resolve`).
    memory: of the whole process: "6GiB", "75%" (of what this process may use), bytes, or "auto": 85 % of what is
        available now, or less if every expert fits in less (and no GPU's driver takes what nobody knows).
    ctx: tokens of context, prompt and answers together, at most what the model was trained for. None: 4096, or less
        if the budget is small; `engine.plan.n_ctx` says how many.
    threads: compute threads; None: the physical cores.
    n_ubatch: most tokens computed at once in prefill; None: chosen by the plan.
    n_outputs: most tokens whose logits one `eval(..., want_all=True)` keeps.
    policy: which expert leaves a full cache: "next-use" (the one expected to be needed again last), "lfru", "lru",
        "lfu" or "mrs".
    prefetch: read experts before a router asks for them: "auto" (where it measures faster), "off" or "on".
    draft: most tokens guessed from the text (prompt lookup) and verified in one pass with the next: 1 to 6, "off", or
        "auto": 6 where the model allows it. Fewer or none are drafted where that measures faster. The answer is the
        same to the bit. Where the processor is the bottleneck, as it is where all fits, little is to be won.
    warm_start: begin with what earlier runs learned about the model's experts, and keep what this one learns.
    buffered: read through the page cache even where O_DIRECT works.
    reader: "uring", "threads", or "auto": io_uring where the kernel allows it.
    read_lanes: reads under way at once; 0: as measured once on the model's file, if it streams.
    read_limit: bytes a second, for experiments.
    kv_type: "f16", or "q8_0" for half the memory, which is lossy.
    device: "cpu", "vulkan", "cuda", "metal", or "auto": a GPU where this llama.cpp sees one; `engine.plan.device` says
        which. It gets dense weights and KV cache, and the experts of as many layers as gpu_memory holds ("4GiB";
        None: 85 % of what is free there), or single experts of more layers, the most used first, where earlier runs
        have shown which they are and that measures faster. It rounds otherwise than the CPU.
    gpu_experts: single experts for the GPU, numbered through all layers; None: decided as said, once, and kept.
    progress: receives a line of text before each step that takes time.

    Raises BudgetError naming the smallest budget that works, before anything is loaded; UsageError, FormatError,
    UnsupportedError, StorageError.
    """
    wanted = parse_memory(memory)
    if policy not in POLICIES:
        raise UsageError(f"`{policy}` is not a cache policy", hint=f"use one of {_listed(POLICIES)}")
    if prefetch not in PREFETCH:
        raise UsageError(f"`{prefetch}` is not a way to prefetch", hint=f"use one of {_listed(PREFETCH)}")
    if reader not in READERS:
        raise UsageError(f"`{reader}` is not a reader", hint="use `auto`, `uring` or `threads`")
    if not 0 <= read_lanes <= 64:
        raise UsageError(f"{read_lanes} reads at once make no sense", hint="give 1 to 64, or 0 for the default")
    n_draft = parse_draft(draft)
    read_bytes_per_s = 0 if read_limit is None else parse_size(read_limit)
    if reader == "uring" and (buffered or read_bytes_per_s):
        raise UsageError(
            "io_uring reads neither through the page cache nor at a limit", hint="use the reader `threads`"
        )
    n_outputs = _rows(n_outputs, n_draft)
    wished = None if gpu_experts is None else tuple(gpu_experts)
    shape = _Shape(ctx, _threads(threads), n_ubatch, n_outputs, kv_type, device, gpu_memory, wished, warm_start)
    with ExitStack() as undo:
        model = undo.enter_context(open_model(path))
        if is_export(model):
            from .onnx.load import load_export, refuse_options

            uring, wish = reader == "uring", prefetch == "on"
            refuse_options(
                {
                    "prefetch": wish,
                    "reader": uring,
                    "read-limit": read_bytes_per_s,
                    "kv-type": kv_type != "f16",
                    "draft": n_draft or 0,
                    "device": device != "cpu",
                }
            )
            _check_outputs(shape)
            _check_device(shape)
            return load_export(
                model,
                lambda resident: resolve_budget(wanted, resident),
                lambda new: resolve_budget(parse_memory(new), sys.maxsize),
                n_ctx=ctx,
                n_ubatch=n_ubatch,
                n_threads=shape.n_threads,
                n_outputs=n_outputs,
                policy=POLICIES.index(policy),
                warm_start=warm_start,
                progress=progress,
            )
        if reader == "uring" and not model.info.direct_io:
            raise UnsupportedError(f"io_uring needs O_DIRECT, which `{path}` refuses", hint="use the reader `threads`")
        plan, gpu = _plan(model, wanted, shape, measure=False)
        shell = shell_for(model, progress=progress)
        if progress:
            progress(f"loading {model.info.name}")
        params = EngineParams(
            n_read_lane=read_lanes or _lanes(model, plan),
            cache_bytes=plan.cache_min_bytes,
            policy=POLICIES.index(policy),
            prefetch=PREFETCH.index(prefetch),
            buffered=int(buffered),
            reader=READERS.index(reader),
            read_bytes_per_s=read_bytes_per_s,
            context=context_params(
                plan.n_ctx, plan.n_ubatch, plan.n_threads, n_outputs, kv_type, _number(gpu), plan.n_gpu_layer
            ),
            **_native.expert_list(plan.gpu_experts),
        )

        def resolve(new: str | int) -> int:
            return resolve_budget(parse_memory(new), plan.resident_bytes if gpu is None else sys.maxsize)

        backend = NativeBackend(_native.engine_open(model.handle, os.fspath(shell), params))
        engine = Engine(model, backend, plan, resolve=resolve, warm_start=warm_start, n_draft=n_draft)
        undo.pop_all()
        return engine


def plan(
    model: Model | str | os.PathLike[str],
    *,
    memory: str | int = "auto",
    ctx: int | None = None,
    threads: int | None = None,
    n_ubatch: int | None = None,
    n_outputs: int = 1,
    draft: str | int = "off",
    kv_type: str = "f16",
    device: str = "cpu",
    gpu_memory: str | int | None = None,
    gpu_experts: Sequence[int] | None = None,
    measure: bool = True,
) -> Plan:
    """How `load` with the same arguments would spend the budget, with the decode speed to expect; loads nothing.

    measure: spend up to two seconds on the speed of storage and kernels if it is not known; otherwise predict only
    from what is known. Raises like `load`.
    """
    wanted = parse_memory(memory)
    n_outputs = _rows(n_outputs, parse_draft(draft))
    wished = None if gpu_experts is None else tuple(gpu_experts)
    shape = _Shape(ctx, _threads(threads), n_ubatch, n_outputs, kv_type, device, gpu_memory, wished)
    if isinstance(model, Model):
        return _plan(model, wanted, shape, measure=measure)[0]
    with open_model(model) as opened:
        return _plan(opened, wanted, shape, measure=measure)[0]


def _lanes(model: Model, plan: Plan) -> int:
    """Reads under way at once. Measured in the memory that becomes the cache's."""
    streams = plan.n_slot < plan.n_expert_total
    return find_lanes(model.path, model.block_bytes, max_bytes=plan.cache_bytes) if streams else N_LANE


def _rows(n_outputs: int, n_draft: int | None) -> int:
    """Rows of logits to have room for: a pass over drafts needs one for each of its tokens."""
    n_pass = 1 + (MAX_DRAFT if n_draft is None else n_draft)
    return max(n_outputs, n_pass) if n_outputs >= 1 else n_outputs  # which is refused


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def resolve_budget(memory: Memory, resident: int) -> int:
    """Bytes of a budget for a model whose every expert fits in `resident` bytes.

    Raises UsageError when it asks for more than this process may use and the model could use it.
    """
    limit = memory_limit()
    if memory.kind == "percent":
        return int(limit * memory.value / 100)
    if memory.kind == "auto":
        # What this process has already is part of its budget.
        return min(int((available_memory() + process_memory().rss) * _AUTO_SHARE), resident)
    if memory.value > limit < resident:
        raise UsageError(
            f"a budget of {format_size(memory.value)} is more than this process may use, {format_size(limit)}",
            hint=f"use `--memory auto`, or at most `--memory {format_exact(limit - limit // 20)}`",
        )
    return int(memory.value)


@dataclass(frozen=True)
class _Shape:
    """A context as the user asked for it."""

    n_ctx: int | None
    n_threads: int
    n_ubatch: int | None
    n_outputs: int
    kv_type: str
    device: str = "cpu"
    gpu_memory: str | int | None = None
    gpu_experts: tuple[int, ...] | None = None
    warm: bool = True


def _threads(threads: int | None) -> int:
    if threads is None:
        return physical_cores()
    if not 1 <= threads <= _MAX_THREADS:
        raise UsageError(
            f"{threads} threads make no sense", hint=f"this machine has {physical_cores()} cores for `--threads`"
        )
    return threads


def _number(gpu: Gpu | None) -> int:
    return 0 if gpu is None else gpu.index + 1


def _check_device(shape: _Shape) -> None:
    if shape.gpu_experts and shape.device == "cpu":
        raise UsageError("`gpu_experts` are for a GPU", hint="name one with `device`")
    if shape.gpu_memory is not None and shape.device == "cpu":
        raise UsageError("`--gpu-memory` is for a GPU", hint="name one: `--device auto`, `vulkan`, `cuda` or `metal`")


def _check_outputs(shape: _Shape) -> None:
    if not 1 <= shape.n_outputs <= _MAX_OUTPUTS:
        raise UsageError(
            f"logits of {shape.n_outputs} tokens make no sense", hint=f"use `n_outputs` of 1 to {_MAX_OUTPUTS}"
        )


def _plan(model: Model, memory: Memory, shape: _Shape, *, measure: bool) -> tuple[Plan, Gpu | None]:
    """The plan, and the GPU that it is for."""
    _check_outputs(shape)
    _check_device(shape)
    if is_export(model):
        from .onnx.load import plan_export, refuse_options

        refuse_options({"device": shape.device != "cpu"})
        found = plan_export(
            model,
            lambda resident: resolve_budget(memory, resident),
            n_ctx=shape.n_ctx,
            n_ubatch=shape.n_ubatch,
            n_threads=shape.n_threads,
            n_outputs=shape.n_outputs,
        )
        return found, None
    context_params(1, 1, 1, 1, shape.kv_type)  # refuses an unknown kv_type before anything is measured
    later_bytes = first_rendering_bytes(model.chat_template)
    gpu = choose(shape.device)  # its driver is awake from here on, and part of the process
    budget = Budget(0, process_memory().rss, shape.n_threads, shape.n_ctx, shape.n_ubatch, later_bytes)
    name = "" if gpu is None else f"{gpu.backend} {gpu.description}"

    def spend(placement: Placement, host_bytes: int, like: Plan | None) -> Plan:
        info = on_host(model, placement.n_gpu_layer, placement.experts)
        with SizeBook(
            model,
            n_threads=shape.n_threads,
            n_outputs=shape.n_outputs,
            kv_type=shape.kv_type,
            device=_number(gpu),
            device_name=name,
            n_gpu_layer=placement.n_gpu_layer,
        ) as sizes:
            # With a GPU there is no budget that is sure to be enough: its driver takes memory as it goes.
            enough = resident_bytes(info, sizes, budget) if gpu is None else sys.maxsize
            asked = replace(
                budget, bytes=resolve_budget(memory, enough), process_bytes=budget.process_bytes + host_bytes
            )
            if like:  # the same context, of which the GPU has a part already
                asked = replace(asked, n_ctx=like.n_ctx, n_ubatch=like.n_ubatch)
            speeds = _speeds(model, shape.n_threads, measure=measure) if gpu is None else None
            reader = "uring" if model.info.direct_io and _native.io_uring_allowed() else "threads"
            return make_plan(info, sizes, asked, speeds, reader=reader)

    if gpu is None:
        return spend(Placement(0), 0, None), None
    gpu_bytes = _gpu_budget(gpu, shape)
    return plan_for_gpu(
        model, gpu, gpu_bytes, spend, n_threads=shape.n_threads, warm=shape.warm, experts=shape.gpu_experts
    ), gpu


def _gpu_budget(gpu: Gpu, shape: _Shape) -> int:
    if shape.gpu_memory is None:
        return int(gpu.free_bytes * _AUTO_SHARE)
    wanted = parse_size(shape.gpu_memory)
    if wanted > gpu.total_bytes:
        raise UsageError(
            f"{gpu.name} has {format_size(gpu.total_bytes)}, not {format_size(wanted)}",
            hint=f"use `--gpu-memory {format_exact(int(gpu.free_bytes * _AUTO_SHARE))}` or leave it out",
        )
    return wanted


def _speeds(model: Model, n_threads: int, *, measure: bool) -> Speeds | None:
    """Measured speeds, or those known from before, None when they are not."""
    device = profile(model.path, model.block_bytes, model.main_type, n_threads=n_threads, measure=measure)
    if device.storage is None or device.compute_bytes_per_s is None:
        return None
    return Speeds(device.storage.bytes_per_s, device.compute_bytes_per_s)
