"""What an engine has done so far, as data. All counters grow from load on; `since` gives those of a part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# What is a state, not a counter: `since` keeps the newer one.
_STATES = frozenset(
    ("n_slot", "n_slot_used", "direct_io", "page_cache", "reader", "cache_bytes", "dense_bytes", "kv_bytes",
     "compute_bytes",
     "output_bytes", "scratch_bytes", "decode_bytes", "prefill_bytes", "rss_bytes", "peak_bytes", "budget_bytes",
     "n_past", "n_ctx", "prefetch_paused", "prefetch_depth", "prefetch_threshold", "with_ns", "without_ns",
      "gpu_bytes", "row_cache_bytes", "untouched_bytes", "lossy_nats", "spent_nats")
)  # fmt: skip


def reading(direct_io: bool, reader: str, page_cache: bool) -> str:
    """How experts are read, in words, and what is not to be had here."""
    if page_cache:
        return "through the page cache, which keeps what it can"
    way = "past the page cache (O_DIRECT)" if direct_io else "through the page cache (no O_DIRECT)"
    return f"{way}, {'io_uring' if reader == 'uring' else 'threads (no io_uring)' if direct_io else 'threads'}"


@dataclass(frozen=True)
class Stats:
    """Counters and state of an engine; durations in ns, sizes in bytes.

    n_slot: experts that the cache can hold (estimate where sizes differ); n_slot_used: experts in it.
    n_decode: tokens of answers after the first, in decode_ns. n_prefill: tokens computed in batches, in prefill_ns.
    n_hit, n_miss: uses of an expert in a layer, by a token or a batch, found in the cache or read.
    n_streamed: uses in prefill that passed through without staying. n_late: hits that were still on their way.
    n_prefetch: experts read before a router asked for them; n_prefetch_used: of them used; prefetch_bytes: read for it.
    prefetch_paused: reading ahead was found slower than not, and is stopped for now; with_ns, without_ns: the mean
    token of either kind lately. prefetch_depth, prefetch_threshold: layers looked ahead, and the least probability
    for which an expert is read. drive_ns: time with a read under way. n_read, read_bytes: reads issued.
    direct_io: reads bypass the page cache; page_cache: it keeps what was read (`Setup.page_cache`). reader: how they
    are made, "threads" or "uring".
    stall_ns: time in which a compute thread slept for a read, mean over threads.
    n_gpu: uses of experts that a GPU has one by one, which are neither hit nor miss.
    gpu_bytes: allocated on the GPU, 0 without one: weights, KV cache and compute buffers.
    row_cache_bytes: for rows of tables that stay in the files, 0 where none does. n_row_hit, n_row_miss: rows looked up
    (those of a batch that are the same once) and found there, or read: row_read_bytes, which are not in read_bytes.
    untouched_bytes: of all but the expert cache, what was not resident before text was computed.
    n_skip: with `Setup.lossy`, uses of experts that were left out, which are neither hit nor miss; skip_bytes: not read
    for that. lossy_nats: the price, nats a token; spent_nats: what was spent of it, a mean over about the last 200
    tokens, as far as the calibration can tell.
    rss_bytes, peak_bytes: resident memory of this process now and at most. budget_bytes: what it may use.
    n_draft: tokens drafted and verified; n_draft_used: of them those that became part of an answer.
    n_past: tokens in the sequence, of n_ctx.
    """

    n_slot: int
    n_slot_used: int
    direct_io: bool
    page_cache: bool
    n_decode: int
    n_prefill: int
    decode_ns: int
    prefill_ns: int
    n_hit: int
    n_miss: int
    n_evict: int
    n_read: int
    read_bytes: int
    stall_ns: int
    cache_bytes: int
    dense_bytes: int
    kv_bytes: int
    compute_bytes: int
    output_bytes: int
    scratch_bytes: int
    decode_bytes: int
    prefill_bytes: int
    n_streamed: int
    n_late: int
    n_prefetch: int
    n_prefetch_used: int
    prefetch_bytes: int
    drive_ns: int
    prefetch_paused: bool
    prefetch_depth: int
    prefetch_threshold: float
    with_ns: int
    without_ns: int
    n_gpu: int
    gpu_bytes: int
    row_cache_bytes: int
    n_row_hit: int
    n_row_miss: int
    row_read_bytes: int
    untouched_bytes: int
    n_skip: int
    skip_bytes: int
    lossy_nats: float
    spent_nats: float
    reader: str
    rss_bytes: int
    peak_bytes: int
    budget_bytes: int
    n_draft: int
    n_draft_used: int
    n_past: int
    n_ctx: int

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second in decode, 0 before the first."""
        return self.n_decode * 1e9 / self.decode_ns if self.decode_ns else 0.0

    @property
    def prefill_tok_s(self) -> float:
        """Tokens a second in prefill, 0 before the first."""
        return self.n_prefill * 1e9 / self.prefill_ns if self.prefill_ns else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of expert uses found in the cache, 0 before the first."""
        uses = self.n_hit + self.n_miss
        return self.n_hit / uses if uses else 0.0

    @property
    def skip_rate(self) -> float:
        """Share of expert uses that were left out, 0 before the first."""
        uses = self.n_hit + self.n_miss + self.n_skip
        return self.n_skip / uses if uses else 0.0

    @property
    def spent_line(self) -> str:
        """What of a lossy price was spent, in words; "" where nothing is left out."""
        if not self.lossy_nats:
            return ""
        return f"{self.spent_nats:.3f} of {self.lossy_nats:g} nats a token, {self.skip_rate:.1%} of uses left out"

    @property
    def read_bytes_per_s(self) -> float:
        """Bytes read over the time spent computing tokens, 0 before the first."""
        spent = self.decode_ns + self.prefill_ns
        return self.read_bytes * 1e9 / spent if spent else 0.0

    def since(self, earlier: Stats) -> Stats:
        """The counters since an earlier snapshot of the same engine, with the state of now."""
        now, before = asdict(self), asdict(earlier)
        return Stats(**{name: value if name in _STATES else value - before[name] for name, value in now.items()})

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, the derived rates included."""
        derived = ("decode_tok_s", "prefill_tok_s", "hit_rate", "skip_rate", "read_bytes_per_s")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}
