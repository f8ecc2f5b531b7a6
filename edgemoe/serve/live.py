"""What the runtime does right now, as data: for the page twice a second, and for Prometheus when it asks."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from ..devices.memory import memory_limit, process_memory
from ..errors import UsageError
from ..runtime.engine.engine import Engine
from ..runtime.engine.stats import Stats, reading
from .lossy import lossy_of
from .worker import Worker

INTERVAL_S = 0.5
_WINDOW = 5  # snapshots that speeds are taken over: 2 s


class LiveView:
    """One reader's view: it remembers what it showed, so that speeds are those of the last moments."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._model = ""
        self._seen: deque[tuple[float, Stats]] = deque(maxlen=_WINDOW)

    def snapshot(self) -> dict[str, Any]:
        """A JSON object; `docs/server.md` says what is in it."""
        worker, catalog = self._worker, self._worker.catalog
        shown: dict[str, Any] = {
            "models": list(catalog.entries),
            "model": None,
            "state": "loading" if catalog.loading else "busy" if worker.busy else "idle",
            "running": len(worker.busy),
            "waiting": worker.n_waiting,
            "queue": worker.max_waiting,
        }
        loaded = catalog.current
        if loaded is None:
            return shown
        try:
            return {**shown, "model": loaded[0], **self._engine(*loaded)}
        except UsageError:  # it was closed in the meantime
            return shown

    def _engine(self, name: str, engine: Engine) -> dict[str, Any]:
        stats = engine.stats()
        if name != self._model:
            self._model = name
            self._seen.clear()
        begin, first = self._seen[0] if self._seen else (time.monotonic(), stats)
        now = time.monotonic()
        self._seen.append((now, stats))
        recent, seconds = stats.since(first), max(now - begin, 1e-9)
        return {
            "context": {"n_past": max(seat.n_past for seat in engine.seats), "n_ctx": stats.n_ctx},
            "answers": [
                {"n_past": seat.n_past, "running": i in self._worker.busy} for i, seat in enumerate(engine.seats)
            ],
            "recent": {
                "decode_tok_s": recent.decode_tok_s,
                "prefill_tok_s": recent.prefill_tok_s,
                "hit_rate": recent.hit_rate if recent.n_hit + recent.n_miss else None,
                "read_bytes_per_s": recent.read_bytes / seconds if len(self._seen) > 1 else 0,
                "stall_share": min(1.0, recent.stall_ns / 1e9 / seconds),
            },
            "total": {
                "n_decode": stats.n_decode,
                "n_prefill": stats.n_prefill,
                "decode_tok_s": stats.decode_tok_s,
                "hit_rate": stats.hit_rate,
                "read_bytes": stats.read_bytes,
            },
            "lossy": lossy_of(recent),
            "memory": memory_parts(engine, stats),
            "reading": reading(stats.direct_io, stats.reader, stats.page_cache),
            "experts": experts(engine),
        }


def memory_parts(engine: Engine, stats: Stats) -> dict[str, Any]:
    """The budget and what it goes to, bytes. smallest, resident: where less does not work and more does not help."""
    plan = engine.plan
    cache_used = stats.cache_bytes * stats.n_slot_used // max(1, stats.n_slot)
    return {
        "budget": plan.budget_bytes,
        "rss": stats.rss_bytes,
        "peak": stats.peak_bytes,
        "smallest": plan.fixed_bytes + plan.cache_min_bytes + plan.margin_bytes,
        "resident": plan.resident_bytes,
        "limit": memory_limit(),
        "cache_used": min(cache_used, stats.cache_bytes),
        "parts": {
            "process": plan.process_bytes,
            "dense weights": plan.dense_bytes,
            "KV cache": plan.kv_bytes,
            "compute": plan.decode_bytes + plan.output_bytes,
            "expert cache": plan.cache_bytes,
            "margin": plan.margin_bytes,
        },
    }


def experts(engine: Engine) -> dict[str, Any]:
    """Each MoE layer's experts.

    cells: one byte an expert, layer after layer, in base64: the bits of `Engine.experts`.
    """
    layers = engine.model.layers
    return {
        "layers": [layer.layer for layer in layers],
        "n_expert": [layer.n_expert for layer in layers],
        "cells": base64.b64encode(b"".join(engine.experts())).decode(),
    }


# ---------------------------------------------------------------- Prometheus

_COUNTERS = {
    "n_decode": ("decode_tokens", "tokens computed one at a time", 1.0),
    "n_prefill": ("prefill_tokens", "tokens computed in batches", 1.0),
    "decode_ns": ("decode_seconds", "time spent decoding", 1e-9),
    "prefill_ns": ("prefill_seconds", "time spent in prefill", 1e-9),
    "n_hit": ("expert_hits", "expert uses found in the cache", 1.0),
    "n_miss": ("expert_misses", "expert uses that were read", 1.0),
    "n_skip": ("expert_skips", "expert uses that were left out, lossy", 1.0),
    "skip_bytes": ("skipped_bytes", "bytes not read for that", 1.0),
    "n_evict": ("expert_evictions", "experts that left the cache", 1.0),
    "n_prefetch": ("prefetched_experts", "experts read before a router asked for them", 1.0),
    "n_prefetch_used": ("prefetched_experts_used", "those of them that were used", 1.0),
    "n_read": ("reads", "reads issued", 1.0),
    "read_bytes": ("read_bytes", "bytes read from storage", 1.0),
    "stall_ns": ("stall_seconds", "time in which a compute thread slept for a read", 1e-9),
}


class RequestCounts:
    """Requests and tokens since the start of the server."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}
        self.tokens = {"prompt": 0, "cached": 0, "completion": 0}
        self.n_gone = 0

    def request(self, path: str, status: int) -> None:
        self.requests[path, status] = self.requests.get((path, status), 0) + 1


def metrics(worker: Worker, counts: RequestCounts) -> str:
    """Everything in Prometheus' text format."""
    lines: list[str] = []

    def family(name: str, kind: str, text: str, values: Iterator[tuple[Mapping[str, str], float]]) -> None:
        full = f"edgemoe_{name}{'_total' if kind == 'counter' else ''}"
        lines.append(f"# HELP {full} {text}")
        lines.append(f"# TYPE {full} {kind}")
        for labels, value in values:
            inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            lines.append(f"{full}{{{inside}}} {value:.10g}" if inside else f"{full} {value:.10g}")

    def one(value: float) -> Iterator[tuple[Mapping[str, str], float]]:
        return iter([({}, value)])

    requests = (({"path": path, "status": str(status)}, n) for (path, status), n in list(counts.requests.items()))
    family("requests", "counter", "requests answered", requests)
    family("tokens", "counter", "tokens of answered requests", (({"kind": k}, n) for k, n in counts.tokens.items()))
    family("requests_refused", "counter", "requests that found the queue full", one(worker.n_refused))
    family("requests_abandoned", "counter", "requests whose client went away", one(counts.n_gone))
    family("requests_running", "gauge", "requests that are answered now", one(len(worker.busy)))
    family("queue_waiting", "gauge", "requests that wait", one(worker.n_waiting))
    family("queue_size", "gauge", "requests that may wait", one(worker.max_waiting))
    memory = process_memory()
    family("resident_bytes", "gauge", "resident memory of the process", one(memory.rss))
    family("resident_peak_bytes", "gauge", "the most it ever was", one(memory.peak))
    totals, stats = dict(worker.catalog.totals.values), None
    loaded = worker.catalog.current
    if loaded:
        try:
            stats = loaded[1].stats()
        except UsageError:  # it was closed in the meantime, and is among the totals at the next look
            loaded = None
    for field, (name, text, scale) in _COUNTERS.items():
        value = totals.get(field, 0) + (getattr(stats, field) if stats else 0)
        family(name, "counter", text, one(value * scale))
    now = loaded[0] if loaded else ""
    models = (({"model": name}, float(name == now)) for name in worker.catalog.entries)
    family("model_loaded", "gauge", "1 for the model in memory", models)
    if loaded and stats:
        family("budget_bytes", "gauge", "what the process may use", one(stats.budget_bytes))
        family("expert_cache_bytes", "gauge", "bytes of expert slots", one(stats.cache_bytes))
        family("expert_slots", "gauge", "experts that the cache can hold", one(stats.n_slot))
        family("expert_slots_used", "gauge", "experts in it", one(stats.n_slot_used))
        n_kept, kept_bytes = loaded[1].prefixes
        family("remembered_conversations", "gauge", "conversations beside the one in the engine", one(n_kept))
        family("remembered_bytes", "gauge", "bytes of their states", one(kept_bytes))
        family("lossy_price_nats", "gauge", "what leaving out experts may cost a token, nats", one(stats.lossy_nats))
        family("lossy_spent_nats", "gauge", "what it costs, a mean over 200 tokens, nats", one(stats.spent_nats))
        n_past = sum(seat.n_past for seat in loaded[1].seats)
        family("context_tokens", "gauge", "tokens in the sequences, one for each answer computed at once", one(n_past))
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
