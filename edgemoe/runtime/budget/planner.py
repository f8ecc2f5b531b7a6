"""How a memory budget is spent: the plan as data and in words. The reckoning is native (native/src/budget)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ... import _native
from ..._abi import ERR_MEMORY, OK
from ..._abi import Error as NativeError
from ..._abi import Plan as NativePlan
from ..._abi import Setup as NativeSetup
from ..._abi import Speeds as NativeSpeeds
from ...errors import BudgetError, UsageError
from ...units import Memory, format_exact, format_rate, format_size, format_speeds
from ..engine.stats import reading
from ..setup import budget_of

if TYPE_CHECKING:
    from ..model import ContextSizes, ModelInfo

_SHORTEST_CTX = 512  # the planner tries none that is shorter

Sizes = Callable[[int, int], "ContextSizes"]
"""sizes(n_ctx, n_ubatch): what a context of that shape allocates."""


@dataclass(frozen=True)
class Budget:
    """What may be spent, and on what.

    bytes: the whole process. process_bytes: what it takes before the model is loaded: interpreter, libraries.
    later_bytes: what it may take after that, out of the cache (the chat template's engine).
    n_ctx, n_ubatch: as the user asked, or None to have them chosen.
    """

    bytes: int
    process_bytes: int
    n_threads: int
    n_ctx: int | None = None
    n_ubatch: int | None = None
    later_bytes: int = 0


@dataclass(frozen=True)
class Speeds:
    """Measured speeds, bytes a second: storage in blocks of an expert's matrix, kernels in weight bytes.

    hit_rate: what earlier runs of this very model had with a cache of this size; None: not known.
    """

    disk_bytes_per_s: float
    compute_bytes_per_s: float
    hit_rate: float | None = None


@dataclass(frozen=True)
class Prediction:
    """Decode speed in tokens a second. low: routing without locality; high: with that of a trained model on text.

    hit_rate: of the second; measured: earlier runs of this very model had it.
    """

    low: float
    high: float
    reason: str
    hit_rate: float = 1.0
    measured: bool = False


@dataclass(frozen=True)
class Plan:
    """How a budget is spent; sizes in bytes.

    process_bytes: interpreter, libraries, tokenizer. compute_bytes, scratch_bytes: llama.cpp's compute buffers and
    edgemoe's working space for a batch of n_ubatch tokens, of which decode_bytes are in use all the time; the rest,
    prefill_bytes, is lent by the expert cache while a large batch is computed. margin_bytes: page tables, kernel,
    allocator. cache_bytes: the expert cache, of which slot_min_bytes cannot be lent. n_slot: experts that fit in it
    (estimate). fraction: of all experts, 0 to 1. smallest_bytes: the smallest budget that works (with the shortest
    context if none was asked for). resident_bytes: the budget in which every expert fits and stays, also during a
    large batch and after the chat template's first rendering. direct_io, reader, page_cache: how experts are read (see
    Stats).
    device: the GPU that has dense weights and KV cache ("CUDA0"), "" for the CPU; device_description: what it calls
    itself; device_number: 1 + its index among ggml's devices, 0 for the CPU. prediction: None with a GPU, whose speed
    nobody measured. gpu_bytes: given there, of gpu_budget_bytes. n_gpu_layer: layers whose experts are computed there,
    gpu_experts: those of other layers, numbered through all of them (neither cached nor in n_expert_total).
    table_bytes: of tables that stay in the files, and are not in dense_bytes; row_cache_bytes: for rows of them. Both
    are 0 where every expert fits beside the tables, which are in memory then.
    picture_bytes: lent by the expert cache while a picture of common size is encoded, 0 without an encoder.
    n_sequence: answers that may be computed at once, each with a context of n_ctx tokens.
    n_ctx_asked: the context that was asked for, 0 for none; n_ctx is less where the model was trained for less.
    """

    model: str
    budget_bytes: int
    process_bytes: int
    dense_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    scratch_bytes: int
    decode_bytes: int
    prefill_bytes: int
    margin_bytes: int
    cache_bytes: int
    slot_min_bytes: int
    n_ctx: int
    n_ubatch: int
    n_threads: int
    n_slot: int
    n_expert_total: int
    fraction: float
    smallest_bytes: int
    resident_bytes: int
    direct_io: bool
    reader: str = ""
    page_cache: bool = False
    prediction: Prediction | None = None
    device: str = ""
    device_description: str = ""
    device_number: int = 0
    gpu_bytes: int = 0
    gpu_budget_bytes: int = 0
    n_gpu_layer: int = 0
    gpu_experts: tuple[int, ...] = ()
    n_ctx_asked: int = 0
    table_bytes: int = 0
    row_cache_bytes: int = 0
    picture_bytes: int = 0
    n_sequence: int = 1

    @staticmethod
    def of(name: str, native: NativePlan, **more: Any) -> Plan:
        """A plan that the library made for the model `name`. more: fields that it does not know."""
        values = {field[0]: getattr(native, field[0]) for field in native._fields_}
        del values["struct_size"]
        return Plan(model=name, **{**values, **more})

    def native(self) -> NativePlan:
        """The struct of edgemoe.h."""
        names = [field[0] for field in NativePlan._fields_][1:]
        return NativePlan(**{name: getattr(self, name) for name in names})

    @property
    def device_line(self) -> str:
        """What `--device auto` took, in words."""
        if not self.device:
            return "no GPU in this llama.cpp; the CPU computes"
        return f"device: {self.device}, {self.device_description} (`--device cpu` for the CPU)"

    @property
    def context_line(self) -> str:
        """That the context is not the one that was asked for, in words; "" where it is."""
        if self.n_ctx_asked <= self.n_ctx:
            return ""
        return (
            f"`--ctx {self.n_ctx_asked}` is more than the model was trained for: "
            f"the context is cut to {self.n_ctx:,} tokens (`--rope-scaling yarn --rope-scale N` for more)"
        )

    @property
    def fixed_bytes(self) -> int:
        """All but the expert cache and the margin."""
        dense_bytes = self.dense_bytes + self.row_cache_bytes
        return self.process_bytes + dense_bytes + self.kv_bytes + self.output_bytes + self.decode_bytes

    @property
    def cache_min_bytes(self) -> int:
        """The smallest cache: it must be able to lend the largest batch, and a picture's encoder, their memory."""
        return self.slot_min_bytes + max(self.prefill_bytes, self.picture_bytes)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as text, one line an item, for people."""
        each = f" for each of {self.n_sequence} answers" if self.n_sequence > 1 else ""
        experts = f"{self.n_slot:,} of {self.n_expert_total:,} experts ({self.fraction:.0%})"
        rows = [
            ("process", self.process_bytes, "interpreter, libraries, tokenizer"),
            ("dense weights", self.dense_bytes, "everything that is not a routed expert"),
            ("KV cache", self.kv_bytes, f"{self.n_ctx:,} tokens{each}"),
            ("compute", self.decode_bytes, f"llama.cpp's buffers and ours, {self.n_threads} threads"),
            ("output", self.output_bytes, "logits"),
            ("margin", self.margin_bytes, "page tables, allocator, kernel"),
            ("expert cache", self.cache_bytes, experts),
            ("  lent", self.prefill_bytes, f"by the cache, while a batch of {self.n_ubatch} tokens is computed"),
        ]
        if self.row_cache_bytes:
            note = f"of tables of {format_size(self.table_bytes)}, which stay in the file"
            rows.insert(2, ("rows", self.row_cache_bytes, note))
        if self.picture_bytes:
            rows.append(("  lent", self.picture_bytes, "while a picture is encoded, by the encoder and its buffers"))
        lines = [f"{'budget':<16}{format_size(self.budget_bytes):>10}"]
        if self.context_line:
            lines.append(f"{'context':<16}{self.context_line}")
        lines += [f"  {name:<14}{format_size(size):>10}  {note}" for name, size, note in rows]
        if self.device:
            layers = f", experts of {self.n_gpu_layer} layers" if self.n_gpu_layer else ""
            layers += f", {len(self.gpu_experts):,} single experts" if self.gpu_experts else ""
            of = f" of {format_size(self.gpu_budget_bytes)} on {self.device}"
            lines.append(f"{'GPU':<16}{format_size(self.gpu_bytes):>10}{of}: dense weights, KV cache{layers}")
        lines.append(f"{'reading':<16}{reading(self.direct_io, self.reader, self.page_cache)}")
        if self.prediction:
            speed = format_speeds(self.prediction.low, self.prediction.high)
            lines.append(f"{'decode':<16}{speed}: {self.prediction.reason}")
            if self.prediction.measured:
                lines.append(f"{'hits':<16}{self.prediction.hit_rate:.0%}, as earlier runs of this model had")
        lines.append(f"{'smallest budget':<16}{format_exact(self.smallest_bytes)}")
        fits = "everything fits" if self.table_bytes else "all experts fit"
        lines.append(f"{fits:<16}{format_exact(self.resident_bytes)}")
        return lines


def plan(
    model: ModelInfo, sizes: Sizes, budget: Budget, speeds: Speeds | None = None, *, reader: str = "threads"
) -> Plan:
    """Spend a budget on a model. reader: what will read the experts.

    The context is what was asked for, or the longest that leaves most memory to the experts; the batch is the largest
    whose work space the expert cache can lend. Raises BudgetError, naming the smallest budget that works, UsageError.
    """
    native = choose(model, sizes, _setup(budget))
    return finish(model, native, speeds, n_ctx=budget.n_ctx, reader=reader)


Chosen = tuple[NativePlan, int, NativeError]
"""What the library says: the plan, its status, its sentence."""


def choose(model: ModelInfo, sizes: Sizes, setup: NativeSetup) -> Chosen:
    """Ask the library for a plan of any model, whoever runs it."""
    return _native.plan_choose(model.native(), lambda n_ctx, n_ubatch: asdict(sizes(n_ctx, n_ubatch)), setup)


def finish(
    model: ModelInfo,
    chosen: Chosen,
    speeds: Speeds | None,
    *,
    n_ctx: int | None,
    n_sequence: int = 1,
    reader: str = "threads",
) -> Plan:
    """The plan that the library chose, with the speed to expect; or its refusal, in words.

    n_ctx, n_sequence: the context and the answers at once that were asked for.
    """
    native, status, error = chosen
    if status == ERR_MEMORY and native.smallest_bytes:
        smaller = ", or a smaller `--ctx`" if n_ctx and n_ctx > _SHORTEST_CTX else ""
        raise BudgetError(
            f"{format_size(native.budget_bytes)} is too small for {model.name}: "
            f"it needs {format_size(native.smallest_bytes)}",
            hint=f"use `--memory {format_exact(native.smallest_bytes)}`{smaller}",
            smallest=native.smallest_bytes,
        )
    try:
        _native.check(status, error)
    except UsageError as refused:  # more than this process may use
        raise UsageError(refused.message, hint=refused.hint or "use `--memory auto`, or less") from None
    prediction = predict(model, native.fraction, speeds) if speeds else None
    return Plan.of(
        model.name,
        native,
        direct_io=model.direct_io,
        reader=reader,
        prediction=prediction,
        n_ctx_asked=n_ctx or 0,
        n_sequence=n_sequence,
    )


def smallest_bytes(model: ModelInfo, sizes: Sizes, budget: Budget) -> int:
    """The smallest budget with which `plan` succeeds and a process can do the same again, a whole number of MiB."""
    return int(_bounds(model, sizes, budget).smallest_bytes)


def resident_bytes(model: ModelInfo, sizes: Sizes, budget: Budget) -> int:
    """The budget in which every expert fits and stays, with the longest context and the largest batch; whole MiB."""
    return int(_bounds(model, sizes, budget).resident_bytes)


def margin_bytes(budget_bytes: int) -> int:
    """What is left free of a budget."""
    return _native.margin_bytes(budget_bytes)


def hit_rate(fraction: float) -> float:
    """Expected hit rate on real text when a fraction of the experts fits (both 0 to 1)."""
    return _native.hit_rate(fraction)


def resolve_budget(memory: Memory, resident: int) -> int:
    """Bytes of a budget for a model whose every expert fits in `resident` bytes.

    Raises UsageError when it asks for more than this process may use and the model could use it.
    """
    try:
        return _native.budget_bytes(*budget_of(memory), resident)
    except UsageError as error:
        raise UsageError(error.message, hint="use `--memory auto`, or less") from None


def predict(model: ModelInfo, fraction: float, speeds: Speeds) -> Prediction:
    """Decode speed when a fraction of the experts fits."""
    known = -1.0 if speeds.hit_rate is None else speeds.hit_rate
    native = NativeSpeeds(
        disk_bytes_per_s=speeds.disk_bytes_per_s, compute_bytes_per_s=speeds.compute_bytes_per_s, hit_rate=known
    )
    found = _native.plan_predict(model.native(), fraction, native)
    if found["disk_bound"]:
        least, most = format_size(found["high_miss_bytes"]), format_size(found["low_miss_bytes"])
        reason = f"storage, {least} to {most} a token at {format_rate(speeds.disk_bytes_per_s)}"
    else:
        work = format_size(model.dense_token_bytes + model.token_bytes)
        reason = f"compute, {work} a token at {format_rate(speeds.compute_bytes_per_s)}"
    return Prediction(found["low_tok_s"], found["high_tok_s"], reason, found["hit_rate"], known >= 0)


def _setup(budget: Budget, n_bytes: int | None = None) -> NativeSetup:
    if budget.n_ctx is not None and budget.n_ctx < 1:
        raise UsageError(f"a context of {budget.n_ctx} tokens holds nothing", hint="use `--ctx 1024` or more")
    if budget.n_ubatch is not None and budget.n_ubatch < 1:
        raise UsageError(f"a batch of {budget.n_ubatch} tokens computes nothing", hint="use a batch of 1 to 512")
    return NativeSetup(
        memory=budget.bytes if n_bytes is None else n_bytes,
        process_bytes=budget.process_bytes,
        later_bytes=budget.later_bytes,
        n_threads=budget.n_threads,
        n_ctx=budget.n_ctx or 0,
        n_ubatch=budget.n_ubatch or 0,
    )


def _bounds(model: ModelInfo, sizes: Sizes, budget: Budget) -> NativePlan:
    """A plan of which only what does not depend on the budget is filled: one byte is too small for anything."""
    native, status, error = choose(model, sizes, _setup(budget, n_bytes=1))
    if not (status in (OK, ERR_MEMORY) and native.smallest_bytes):
        _native.check(status, error)
    return native
