"""What a person asks of an engine, in one object: checked once, where it is made, and taken whole by everybody."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import _native
from .._abi import BUDGET_AUTO, BUDGET_BYTES, BUDGET_SHARE, LEAST_LOSSY, MAX_SEQUENCE, MAX_VERIFY, READ_PAGE_CACHE
from .._abi import Setup as NativeSetup
from ..devices.cpu import physical_cores
from ..devices.gpu import DEVICES
from ..errors import UsageError
from ..units import Memory, parse_memory, parse_size
from . import rope

Progress = Callable[[str], None]
"""Receives one line of text at the beginning of each step that takes time."""
POLICIES = ("next-use", "lfru", "lru", "lfu", "mrs")
"""Names of EMOE_POLICY_*, by number."""
PREFETCH = ("auto", "off", "on")
"""Names of EMOE_PREFETCH_*, by number."""
READERS = ("auto", "threads", "uring")
"""Names of EMOE_READER_*, by number."""
KV_TYPES = {"f16": 1, "q8_0": 8}
"""ggml_type; f16 is what the model would use itself, q8_0 is lossy."""
MAX_DRAFT = MAX_VERIFY - 1  # tokens; the pass holds the one that is known as well

_MAX_THREADS = 512  # of ggml
_MAX_LANES = 64
_MOST_LOSSY = 1  # nats a token
_MAX_OUTPUTS = 1 << 16
_KINDS = {"bytes": BUDGET_BYTES, "percent": BUDGET_SHARE, "auto": BUDGET_AUTO}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a model is to be opened; the defaults are those of every command. Raises UsageError for values without sense.

    memory: of the whole process: "6GiB", "75%" (of what this process may use), bytes, or "auto": 85 % of what is
        available now, or less if every expert fits in less (and no GPU's driver takes what nobody knows).
    ctx: tokens of context, prompt and answers together, at most what the model was trained for: more is cut, and
        `engine.plan.context_line` says so. None: 4096, or less if the budget is small; `engine.plan.n_ctx` says how
        many.
    threads: compute threads; None: the physical cores.
    n_ubatch: most tokens computed at once in prefill; None: chosen by the plan.
    n_outputs: most tokens whose logits one `eval(..., want_all=True)` keeps.
    kv_type: "f16", or "q8_0" for half the memory, which is LOSSY.
    policy: which expert leaves a full cache: "next-use" (the one expected to be needed again last), "lfru", "lru",
        "lfu" or "mrs".
    prefetch: read experts before a router asks for them: "auto" (where it measures faster), "off" or "on".
    draft: most tokens guessed from the text (prompt lookup) and verified in one pass with the next: 1 to 6, "off", or
        "auto": 6 where the model allows it. Fewer or none are drafted where that measures faster. The answer is the
        same to the bit. Where the processor is the bottleneck, as it is where all fits, little is to be won.
    lossy: LOSSY: nats a token (KL divergence) for which missing experts of small contribution are left out in decode:
        0.02 or 0.05, at least 0.01, at most 1; 0 is exact. Where all fits nothing is left out. Prompts are computed
        exactly. Needs what `edgemoe calibrate` learned of the model, in it or beside it in FILE.calibration. What is
        left out depends on the budget and on what was computed before; nothing is read ahead in decode.
    parallel: answers computed at once, 1 to 7, each with a context of `ctx` tokens of its own: see `Engine.seats`. One
        pass computes a token of each, and reads the experts of a layer once. Not with draft, a GPU, recurrent models
        or sliding windows.
    profile: of a task: a file of `edgemoe calibrate` of text like what comes. The cache begins with what it says of the
        experts' use, not with what earlier runs learned, and this run's is not kept; with lossy, prices are its.
    warm_start: begin with what earlier runs learned about the model's experts, and keep what this one learns.
    buffered: read through the page cache even where O_DIRECT works, and drop what was read.
    page_cache: read through it and let it keep what it can: memory that nobody uses serves as a second cache. It is
        not in the budget: the system takes it back when somebody wants it. Not under a limit of the kernel.
    reader: "uring", "threads", or "auto": io_uring where the kernel allows it.
    read_lanes: reads under way at once; 0: as measured once on the model's file, if it streams.
    read_limit: bytes a second, for experiments: a drive that gives no more, and answers after 80 us. Faster ones than
        the real drive need page_cache, and a file that is in it.
    device: "cpu", "vulkan", "cuda", "metal", or "auto": a GPU where this llama.cpp sees one; `engine.plan.device` says
        which. It gets dense weights and KV cache, and the experts of as many layers as gpu_memory holds ("4GiB";
        None: 85 % of what is free there), or single experts of more layers, the most used first, where earlier runs
        have shown which they are and that measures faster. It rounds otherwise than the CPU.
    gpu_experts: single experts for the GPU, numbered through all layers; None: decided as said, once, and kept.
    mmproj: a picture encoder's GGUF file, "auto" for the one beside the model (mmproj*.gguf) if there is one, or "off".
        Memory for it is planned; the expert cache lends it while a picture is encoded. One answer at a time.
    override_kv: metadata that is other than the file says, as llama.cpp's option: "KEY=TYPE:VALUE" each, TYPE being
        int, float, bool or str. Keys that say how tensors are laid out cannot be overridden.
    rope_scaling ("none", "linear", "yarn"), rope_scale (the factor by which the context grows), rope_freq_base,
        rope_freq_scale (1 / rope_scale), yarn_orig_ctx (tokens), yarn_ext_factor, yarn_attn_factor, yarn_beta_slow,
        yarn_beta_fast: as llama.cpp's options of these names; None: as the model says. With any of them but
        yarn_orig_ctx, ctx may be above what the model was trained for.
    """

    memory: str | int = "auto"
    ctx: int | None = None
    threads: int | None = None
    n_ubatch: int | None = None
    n_outputs: int = 1
    kv_type: str = "f16"
    policy: str = "next-use"
    prefetch: str = "auto"
    draft: str | int = "off"
    lossy: float = 0.0
    parallel: int = 1
    profile: str | None = None
    warm_start: bool = True
    buffered: bool = False
    page_cache: bool = False
    reader: str = "auto"
    read_lanes: int = 0
    read_limit: str | int | None = None
    device: str = "cpu"
    gpu_memory: str | int | None = None
    gpu_experts: Sequence[int] | None = None
    mmproj: str | os.PathLike[str] = "off"
    override_kv: Sequence[str] | None = None
    rope_scaling: str | None = None
    rope_scale: float | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None

    def __post_init__(self) -> None:
        parse_memory(self.memory)
        _at_least("--ctx", self.ctx, "a context of {} tokens holds nothing", "use `--ctx 1024` or more")
        _at_least("--ubatch", self.n_ubatch, "a batch of {} tokens computes nothing", "use a batch of 1 to 512")
        _one_of(self.kv_type, KV_TYPES, "a type for the KV cache", "use `f16` (exact) or `q8_0` (lossy)")
        _one_of(self.policy, POLICIES, "a cache policy")
        _one_of(self.prefetch, PREFETCH, "a way to prefetch")
        _one_of(self.reader, READERS, "a reader")
        _one_of(self.device, DEVICES, "a device")
        parse_draft(self.draft)
        self._check_parallel()
        rope.check(self.rope)
        self._check_numbers()
        limited = self.read_bytes_per_s > 0
        if self.reader == "uring" and (self.buffered or self.page_cache or limited):
            raise UsageError(
                "io_uring reads neither through the page cache nor at a limit", hint="use the reader `threads`"
            )
        if self.device == "cpu":
            self._check_no_gpu()
        if self.lossy != 0:
            self._check_lossy()

    def _check_numbers(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise UsageError(
                f"{self.threads} threads make no sense",
                hint=f"this machine has {physical_cores()} cores for `--threads`",
            )
        if not 0 <= self.read_lanes <= _MAX_LANES:
            raise UsageError(
                f"{self.read_lanes} reads at once make no sense", hint="give 1 to 64, or 0 for the default"
            )
        if not 1 <= self.n_outputs <= _MAX_OUTPUTS:
            raise UsageError(
                f"logits of {self.n_outputs} tokens make no sense", hint=f"use `n_outputs` of 1 to {_MAX_OUTPUTS}"
            )

    def _check_parallel(self) -> None:
        if not 1 <= self.parallel <= MAX_SEQUENCE:
            raise UsageError(
                f"{self.parallel} answers at once make no sense", hint=f"use `--parallel` of 1 to {MAX_SEQUENCE}"
            )
        if self.parallel > 1 and self.n_draft != 0:
            raise UsageError(
                "`--draft` and `--parallel` do not go together: a pass has tokens of one answer, or one of each",
                hint="leave one of them out",
            )
        if self.parallel > 1 and self.mmproj not in ("auto", "off"):
            raise UsageError(
                "`--mmproj` and `--parallel` do not go together: pictures are read one answer at a time",
                hint="leave one of them out",
            )
        if self.n_ubatch is not None and self.n_ubatch < self.parallel:
            raise UsageError(
                f"{self.parallel} answers at once need batches of as many tokens",
                hint=f"use `--ubatch {self.parallel}` or more",
            )

    def _check_no_gpu(self) -> None:
        if self.gpu_experts:
            raise UsageError("`gpu_experts` are for a GPU", hint="name one with `device`")
        if self.gpu_memory is not None:
            raise UsageError(
                "`--gpu-memory` is for a GPU", hint="name one: `--device auto`, `vulkan`, `cuda` or `metal`"
            )

    def _check_lossy(self) -> None:
        if not LEAST_LOSSY <= self.lossy <= _MOST_LOSSY:
            raise UsageError(
                f"`--lossy {self.lossy:g}` cannot be kept: below {LEAST_LOSSY:g} nats a token the first routing that "
                f"flips costs more, above {_MOST_LOSSY} little is left of the model",
                hint="use `--lossy 0.02` or `0.05`; 0 is exact",
            )
        beside = {
            "draft": (self.n_draft != 0, "verifies guessed tokens with all experts"),
            "device": (self.device != "cpu", "has the experts or their weights where they cannot be left out"),
            "prefetch": (self.prefetch == "on", "reads what may be left out"),
            "parallel": (self.parallel > 1, "computes a token of each answer with all experts"),
        }
        for name, (given, why) in beside.items():
            if given:
                raise UsageError(f"`--lossy` is not to be had with `--{name}`, which {why}", hint="leave out one")

    def but(self, **changes: Any) -> Setup:
        """A copy with other values."""
        return replace(self, **changes)

    @property
    def wanted(self) -> Memory:
        """The budget as it was asked for."""
        return parse_memory(self.memory)

    @property
    def overrides(self) -> tuple[str, ...]:
        """`override_kv`; none where there are none."""
        return tuple(self.override_kv or ())

    @property
    def rope(self) -> dict[str, Any]:
        """What is said of RoPE and YaRN, by the fields' names."""
        return {name: value for name in rope.FIELDS if (value := getattr(self, name)) is not None}

    @property
    def n_threads(self) -> int:
        return physical_cores() if self.threads is None else self.threads

    @property
    def n_draft(self) -> int | None:
        """Most tokens to draft at once; None: as many as the model allows."""
        return parse_draft(self.draft)

    @property
    def n_rows(self) -> int:
        """Rows of logits to have room for: a pass over drafts needs one for each of its tokens."""
        return max(self.n_outputs, 1 + (MAX_DRAFT if self.n_draft is None else self.n_draft))

    @property
    def read_bytes_per_s(self) -> int:
        """Of `read_limit`, 0 for none."""
        return 0 if self.read_limit is None else parse_size(self.read_limit)

    def native(self, *, later_bytes: int = 0, **decided: Any) -> NativeSetup:
        """The struct of edgemoe.h. decided: fields that a plan has settled since (n_ctx, device, n_gpu_layer, ...).

        gpu_experts among them is a sequence of numbers.
        """
        kind, memory = budget_of(self.wanted)
        experts = decided.pop("gpu_experts", ())
        values = {
            "memory_kind": kind,
            "memory": memory,
            "later_bytes": later_bytes,
            "n_ctx": self.ctx or 0,
            "n_ubatch": self.n_ubatch or 0,
            "n_threads": self.n_threads,
            "n_outputs": self.n_rows,
            "kv_type": KV_TYPES[self.kv_type],
            "policy": POLICIES.index(self.policy),
            "prefetch": PREFETCH.index(self.prefetch),
            "reader": READERS.index(self.reader),
            "buffered": READ_PAGE_CACHE if self.page_cache else int(self.buffered),
            "n_read_lane": self.read_lanes,
            "lossy_nats": self.lossy,
            "read_bytes_per_s": self.read_bytes_per_s,
            "n_sequence": self.parallel,
            "profile": None if self.profile is None else os.fsencode(os.path.expanduser(self.profile)),
            "mmproj": None if self.mmproj in ("auto", "off") else os.fsencode(self.mmproj),
            **rope.native(self.rope),
        }
        return NativeSetup(**{**values, **decided}, **_native.expert_list(experts))


def parse_draft(draft: str | int) -> int | None:
    """Most tokens to draft: 0 to MAX_DRAFT, "off" for 0; None for "auto". Raises UsageError."""
    text = str(draft).strip().lower()
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    if text.isdecimal() and int(text) <= MAX_DRAFT:
        return int(text)
    raise UsageError(f"a draft of `{draft}` tokens makes no sense", hint=f"use `auto`, `off`, or 1 to {MAX_DRAFT}")


def budget_of(memory: Memory) -> tuple[int, int]:
    """memory_kind and memory of `emoe_setup`."""
    value = memory.value * 10_000 if memory.kind == "percent" else memory.value
    return _KINDS[memory.kind], round(value)


def _one_of(value: str, allowed: Sequence[str] | dict[str, int], what: str, hint: str = "") -> None:
    if value not in allowed:
        raise UsageError(
            f"`{value}` is not {what}", hint=hint or "use one of " + ", ".join(f"`{name}`" for name in allowed)
        )


def _at_least(option: str, value: int | None, what: str, hint: str) -> None:
    if value is not None and value < 1:
        raise UsageError(what.format(value), hint=hint)
