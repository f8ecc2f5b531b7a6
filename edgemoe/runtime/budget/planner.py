"""Decide how a memory budget is spent.

Pure: the same model, sizes, budget and speeds give the same plan. Measuring is done by who calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ...errors import BudgetError, UsageError
from ...units import KIB, MIB, format_exact, format_rate, format_size, format_speeds
from ..engine.stats import reading

if TYPE_CHECKING:
    from ..gguf.model import ContextSizes, ModelInfo

# Tokens computed at once in prefill, best first: each expert is read once a batch.
UBATCHES = (512, 256, 128, 64, 32)
# Context lengths tried when the user names none, best first.
CONTEXTS = (4096, 2048, 1024, 512)

_LENT_SHARE = 2  # a large batch may borrow 1/2 of the expert cache while it is computed
_KV_SHARE = 3  # a context nobody asked for may take 1/3 of what it shares with the cache and the work space
_SHORT_CTX = 1024  # below this a chat is hardly one: only if nothing longer fits
# Between processes that do the same, resident memory differs by some pages; the smallest budget allows for that.
_SLACK_BYTES = 2 * MIB

# Hit rate by fraction of experts that fit, as measured with LFRU on a trained model over real text (docs: design 3).
_HIT_CURVE = ((0.0, 0.0), (0.16, 0.24), (0.32, 0.62), (0.59, 0.88), (1.0, 1.0))
# Of the time that a token takes with every expert at hand, the part spent in the measured kernels: the rest is
# attention, norms and waiting at barriers (SmolMoE inflated to 2.8 GB, 2 threads).
_KERNEL_SHARE = 0.5
# Compute and reading overlap, but not wholly: this share of the shorter of the two adds to the longer.
_OVERLAP_LOSS = {"low": 0.5, "high": 0.15}

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
    """Measured speeds, bytes a second: storage in blocks of an expert's matrix, kernels in weight bytes."""

    disk_bytes_per_s: float
    compute_bytes_per_s: float


@dataclass(frozen=True)
class Prediction:
    """Decode speed in tokens a second. low: routing without locality; high: with that of a trained model on text."""

    low: float
    high: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a budget is spent; sizes in bytes.

    process_bytes: interpreter, libraries, tokenizer. compute_bytes, scratch_bytes: llama.cpp's compute buffers and
    edgemoe's working space for a batch of n_ubatch tokens, of which decode_bytes are in use all the time; the rest,
    prefill_bytes, is lent by the expert cache while a large batch is computed. margin_bytes: page tables, kernel,
    allocator. cache_bytes: the expert cache, of which slot_min_bytes cannot be lent. n_slot: experts that fit in it
    (estimate). fraction: of all experts, 0 to 1. smallest_bytes: the smallest budget that works (with the shortest
    context if none was asked for). resident_bytes: the budget in which every expert fits and stays, also during a
    large batch and after the chat template's first rendering. direct_io, reader: how experts are read (see Stats).
    device: the GPU that has dense weights and KV cache ("CUDA0"), "" for the CPU; device_description: what it calls
    itself. prediction: None with a GPU, whose speed nobody measured. gpu_bytes: given there, of gpu_budget_bytes.
    n_gpu_layer: layers whose experts are computed there, gpu_experts: those of other layers, numbered through
    all of them (neither cached nor in n_expert_total).
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
    prediction: Prediction | None = None
    device: str = ""
    device_description: str = ""
    gpu_bytes: int = 0
    gpu_budget_bytes: int = 0
    n_gpu_layer: int = 0
    gpu_experts: tuple[int, ...] = ()

    @property
    def device_line(self) -> str:
        """What `--device auto` took, in words."""
        if not self.device:
            return "no GPU in this llama.cpp; the CPU computes"
        return f"device: {self.device}, {self.device_description} (`--device cpu` for the CPU)"

    @property
    def fixed_bytes(self) -> int:
        """All but the expert cache and the margin."""
        return self.process_bytes + self.dense_bytes + self.kv_bytes + self.output_bytes + self.decode_bytes

    @property
    def cache_min_bytes(self) -> int:
        """The smallest cache: it must be able to lend the largest batch its work space."""
        return self.slot_min_bytes + self.prefill_bytes

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as text, one line an item, for people."""
        experts = f"{self.n_slot:,} of {self.n_expert_total:,} experts ({self.fraction:.0%})"
        rows = [
            ("process", self.process_bytes, "interpreter, libraries, tokenizer"),
            ("dense weights", self.dense_bytes, "everything that is not a routed expert"),
            ("KV cache", self.kv_bytes, f"{self.n_ctx:,} tokens"),
            ("compute", self.decode_bytes, f"llama.cpp's buffers and ours, {self.n_threads} threads"),
            ("output", self.output_bytes, "logits"),
            ("margin", self.margin_bytes, "page tables, allocator, kernel"),
            ("expert cache", self.cache_bytes, experts),
            ("  lent", self.prefill_bytes, f"by the cache, while a batch of {self.n_ubatch} tokens is computed"),
        ]
        lines = [f"{'budget':<16}{format_size(self.budget_bytes):>10}"]
        lines += [f"  {name:<14}{format_size(size):>10}  {note}" for name, size, note in rows]
        if self.device:
            layers = f", experts of {self.n_gpu_layer} layers" if self.n_gpu_layer else ""
            layers += f", {len(self.gpu_experts):,} single experts" if self.gpu_experts else ""
            of = f" of {format_size(self.gpu_budget_bytes)} on {self.device}"
            lines.append(f"{'GPU':<16}{format_size(self.gpu_bytes):>10}{of}: dense weights, KV cache{layers}")
        lines.append(f"{'reading':<16}{reading(self.direct_io, self.reader)}")
        if self.prediction:
            speed = format_speeds(self.prediction.low, self.prediction.high)
            lines.append(f"{'decode':<16}{speed}: {self.prediction.reason}")
        lines.append(f"{'smallest budget':<16}{format_exact(self.smallest_bytes)}")
        lines.append(f"{'all experts fit':<16}{format_exact(self.resident_bytes)}")
        return lines


def plan(
    model: ModelInfo, sizes: Sizes, budget: Budget, speeds: Speeds | None = None, *, reader: str = "threads"
) -> Plan:
    """Spend a budget on a model. reader: what will read the experts.

    The context is what was asked for, or the longest of CONTEXTS that leaves most memory to the experts; the batch is
    the largest of UBATCHES whose work space the expert cache can lend.
    Raises BudgetError, naming the smallest budget that works, and UsageError.
    """
    contexts = _contexts(model, budget)
    smallest = smallest_bytes(model, sizes, budget)
    chosen: Plan | None = None
    for n_ctx in contexts:
        found = _best_batch(model, sizes, budget, n_ctx, smallest)
        if found is None or (chosen is not None and n_ctx < _SHORT_CTX):
            continue
        chosen = found
        if found.kv_bytes * _KV_SHARE <= found.kv_bytes + found.output_bytes + found.decode_bytes + found.cache_bytes:
            break
    if chosen is None:
        smaller = ", or a smaller `--ctx`" if budget.n_ctx and budget.n_ctx > CONTEXTS[-1] else ""
        raise BudgetError(
            f"{format_size(budget.bytes)} is too small for {model.name}: it needs {format_size(smallest)}",
            hint=f"use `--memory {format_exact(smallest)}`{smaller}",
            smallest=smallest,
        )
    prediction = predict(model, chosen.fraction, speeds) if speeds else None
    return replace(chosen, reader=reader, prediction=prediction)


def smallest_bytes(model: ModelInfo, sizes: Sizes, budget: Budget) -> int:
    """The smallest budget with which `plan` succeeds and a process can do the same again, a whole number of MiB."""
    n_ctx = _contexts(model, budget)[-1]
    size = sizes(n_ctx, _ubatches(budget, n_ctx)[-1])
    need = _fixed_bytes(model, size, budget) + model.slot_min_bytes + size.prefill_bytes
    return -(-_with_margin(need + budget.later_bytes + _SLACK_BYTES) // MIB) * MIB


def resident_bytes(model: ModelInfo, sizes: Sizes, budget: Budget) -> int:
    """The budget in which every expert fits and stays, with the longest context and the largest batch; whole MiB."""
    n_ctx = _contexts(model, budget)[0]
    size = sizes(n_ctx, _ubatches(budget, n_ctx)[0])
    need = _fixed_bytes(model, size, budget) + model.slot_bytes + size.prefill_bytes
    return -(-_with_margin(need + budget.later_bytes + _SLACK_BYTES) // MIB) * MIB


def margin_bytes(budget_bytes: int) -> int:
    """What is left free of a budget: 12 MiB, or 1.5 % of it if that is more."""
    return max(12 * MIB, budget_bytes * 15 // 1000)


def hit_rate(fraction: float) -> float:
    """Expected hit rate on real text when a fraction of the experts fits (both 0 to 1)."""
    for (x0, y0), (x1, y1) in pairwise(_HIT_CURVE):
        if fraction <= x1:
            return y0 + (y1 - y0) * (fraction - x0) / (x1 - x0)
    return 1.0


def predict(model: ModelInfo, fraction: float, speeds: Speeds) -> Prediction:
    """Decode speed when a fraction of the experts fits."""
    compute_s = (model.dense_token_bytes + model.token_bytes) / speeds.compute_bytes_per_s / _KERNEL_SHARE
    rate, missed, disk_bound = {}, {}, {}
    for case, hits in (("low", fraction), ("high", hit_rate(fraction))):
        missed[case] = model.token_bytes * (1 - hits)
        disk_s = missed[case] / speeds.disk_bytes_per_s
        disk_bound[case] = disk_s > compute_s
        rate[case] = 1 / (max(compute_s, disk_s) + _OVERLAP_LOSS[case] * min(compute_s, disk_s))
    if disk_bound["low"]:
        least, most = format_size(missed["high"]), format_size(missed["low"])
        reason = f"storage, {least} to {most} a token at {format_rate(speeds.disk_bytes_per_s)}"
    else:
        work = format_size(model.dense_token_bytes + model.token_bytes)
        reason = f"compute, {work} a token at {format_rate(speeds.compute_bytes_per_s)}"
    return Prediction(low=rate["low"], high=rate["high"], reason=reason)


def _contexts(model: ModelInfo, budget: Budget) -> tuple[int, ...]:
    """Context lengths to try, longest first: never longer than what the model was trained for."""
    longest = model.n_ctx_train or CONTEXTS[0]
    if budget.n_ctx is not None:
        if budget.n_ctx < 1:
            raise UsageError(f"a context of {budget.n_ctx} tokens holds nothing", hint="use `--ctx 1024` or more")
        return (min(budget.n_ctx, longest),)
    return tuple(dict.fromkeys(min(n_ctx, longest) for n_ctx in CONTEXTS))


def _ubatches(budget: Budget, n_ctx: int) -> tuple[int, ...]:
    """Batch sizes to try, largest first: never larger than the context."""
    if budget.n_ubatch is not None:
        if budget.n_ubatch < 1:
            raise UsageError(f"a batch of {budget.n_ubatch} tokens computes nothing", hint="use a batch of 1 to 512")
        return (min(budget.n_ubatch, n_ctx),)
    return tuple(dict.fromkeys(min(n_ubatch, n_ctx) for n_ubatch in UBATCHES))


def _candidates(model: ModelInfo, sizes: Sizes, budget: Budget, n_ctx: int, smallest: int) -> Iterator[Plan]:
    """The plans that can decode with this context, largest batch first."""
    margin = margin_bytes(budget.bytes)
    for n_ubatch in _ubatches(budget, n_ctx):
        size = sizes(n_ctx, n_ubatch)
        left = budget.bytes - margin - _fixed_bytes(model, size, budget)
        if left < model.slot_min_bytes + size.prefill_bytes + budget.later_bytes:
            continue
        cache = min(left, model.slot_bytes + size.prefill_bytes)
        fraction = min(1.0, cache / model.slot_bytes)
        yield Plan(
            model=model.name,
            budget_bytes=budget.bytes,
            process_bytes=budget.process_bytes + size.vocab_bytes,
            dense_bytes=model.dense_bytes - size.gpu_dense_bytes,
            kv_bytes=size.kv_bytes,
            compute_bytes=size.compute_bytes,
            output_bytes=size.output_bytes,
            scratch_bytes=size.scratch_bytes,
            decode_bytes=size.decode_bytes,
            prefill_bytes=size.prefill_bytes,
            margin_bytes=margin,
            cache_bytes=cache,
            slot_min_bytes=model.slot_min_bytes,
            n_ctx=n_ctx,
            n_ubatch=n_ubatch,
            n_threads=budget.n_threads,
            n_slot=int(fraction * model.n_expert_total),
            n_expert_total=model.n_expert_total,
            fraction=fraction,
            smallest_bytes=smallest,
            resident_bytes=resident_bytes(model, sizes, budget),
            direct_io=model.direct_io,
            gpu_bytes=size.gpu_bytes,
        )


def _best_batch(model: ModelInfo, sizes: Sizes, budget: Budget, n_ctx: int, smallest: int) -> Plan | None:
    found: Plan | None = None
    for found in _candidates(model, sizes, budget, n_ctx, smallest):
        evicts_none = found.cache_bytes - found.prefill_bytes >= model.slot_bytes
        if evicts_none or found.prefill_bytes * _LENT_SHARE <= found.cache_bytes:
            break
    return found


def _fixed_bytes(model: ModelInfo, size: ContextSizes, budget: Budget) -> int:
    """All but the expert cache and the margin."""
    work = size.output_bytes + size.decode_bytes
    dense = model.dense_bytes - size.gpu_dense_bytes
    return budget.process_bytes + size.vocab_bytes + dense + size.kv_bytes + work


def _with_margin(need: int) -> int:
    """The smallest budget that leaves `need` beside its own margin."""
    return max(need + margin_bytes(0), -(-need * 1000 // 985) + KIB)
