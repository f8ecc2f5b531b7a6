"""What an engine is doing, as labelled rows: `/stats` prints them, the live view redraws them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..units import MIB, format_rate, format_size

if TYPE_CHECKING:
    from ..runtime.engine.engine import Engine
    from ..runtime.engine.stats import Stats

_SHADES = "·▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Snapshot:
    """One look at an engine. recent: the counters of the last answer, or of what the reader wants to know about.

    resident, n_expert: experts in the cache and in the file, for each layer that has some; both 0 where a GPU has them.
    """

    stats: Stats
    recent: Stats
    resident: tuple[int, ...]
    n_expert: tuple[int, ...]


def look(engine: Engine, since: Stats | None = None) -> Snapshot:
    """A snapshot of now. since: where `recent` begins; None: at load."""
    from ..runtime.budget.placement import candidates

    stats = engine.stats()
    on_gpu = candidates(engine.model)[: engine.plan.n_gpu_layer] if engine.plan.n_gpu_layer else []
    n_expert = tuple(0 if i in on_gpu else layer.n_expert for i, layer in enumerate(engine.model.layers))
    return Snapshot(stats, stats.since(since) if since else stats, engine.resident(), n_expert)


def rows(snapshot: Snapshot) -> list[tuple[str, str]]:
    """(label, text), a line each."""
    recent = snapshot.recent
    computed = recent.n_decode + recent.n_prefill
    per_token = format_size(recent.read_bytes / computed) if computed else "0 B"
    return [
        ("decode", f"{recent.n_decode:,} tokens at {recent.decode_tok_s:.1f} tok/s"),
        ("prefill", f"{recent.n_prefill:,} tokens at {recent.prefill_tok_s:.1f} tok/s"),
        ("hits", f"{recent.hit_rate:.1%} of expert uses; {recent.n_miss:,} misses, {recent.n_evict:,} evicted"),
        ("storage", f"{per_token} a token at {format_rate(recent.read_bytes_per_s)}; {_waiting(recent)}"),
        *([("lossy", recent.spent_line)] if recent.lossy_nats else []),
        *memory_rows(snapshot.stats),
        *expert_rows(snapshot),
        ("context", f"{snapshot.stats.n_past:,} of {snapshot.stats.n_ctx:,} tokens"),
    ]


def memory_rows(stats: Stats) -> list[tuple[str, str]]:
    """Memory of the process, and its parts."""
    total = (
        f"{format_size(stats.rss_bytes)} of {format_size(stats.budget_bytes)}, at most {format_size(stats.peak_bytes)}"
    )
    used = stats.cache_bytes * min(1.0, stats.n_slot_used / stats.n_slot) if stats.n_slot else 0
    parts = [
        ("dense", stats.dense_bytes),
        ("KV", stats.kv_bytes),
        ("compute", stats.decode_bytes + stats.output_bytes),
        ("experts", round(used)),
    ]
    rest = max(0, stats.rss_bytes - sum(size for _, size in parts))  # buffers fill as they are first used
    found = [
        ("memory", total),
        ("  of it", ", ".join(f"{name} {size / MIB:.0f}" for name, size in [*parts, ("process", rest)]) + " MiB"),
    ]
    return [*found, ("GPU", format_size(stats.gpu_bytes))] if stats.gpu_bytes else found


def expert_rows(snapshot: Snapshot) -> list[tuple[str, str]]:
    """How full the cache is, and a strip with a character a layer."""
    n_total, n_resident = sum(snapshot.n_expert), sum(snapshot.resident)
    share = n_resident / n_total if n_total else 0.0
    here = f"{n_resident:,} of {n_total:,} in memory ({share:.0%}), room for {snapshot.stats.n_slot:,}"
    return [("experts", here), ("  by layer", strip(snapshot.resident, snapshot.n_expert))]


def strip(resident: Sequence[int], n_expert: Sequence[int]) -> str:
    """A character a layer, higher the more of its experts are in memory: "·" none, "█" all, "G" on a GPU."""
    return "".join(_SHADES[level(n, of)] if of else "G" for n, of in zip(resident, n_expert, strict=True))


def level(n: int, of: int) -> int:
    """0 for none, 8 for all, 1 to 7 between."""
    if n <= 0 or of <= 0:
        return 0
    return len(_SHADES) - 1 if n >= of else max(1, n * (len(_SHADES) - 1) // of)


def lines(snapshot: Snapshot) -> list[str]:
    """The rows as text, and how experts are read."""
    from ..runtime.engine.stats import reading

    stats = snapshot.stats
    found = [*rows(snapshot), ("reading", reading(stats.direct_io, stats.reader, stats.page_cache))]
    return [f"{label:<11}{text}" for label, text in found]


def _waiting(recent: Stats) -> str:
    return f"compute waited {recent.stall_ns / 1e9:.1f} s for {recent.n_read:,} reads"
