"""From records to a report: medians and spreads, ratios, and how far each speed is from what the drive allows. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Record = dict[str, Any]

OURS, OFF, EXACT, ONNX = "edgemoe", "prefetch off", "exact", "onnx"
STOCK, REPACKED = "llama.cpp", "llama.cpp repacked"
"""Names of sides."""
_STOCKS = (STOCK, REPACKED)


@dataclass(frozen=True)
class Spread:
    """A quantity over repetitions."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum; at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def decode_rate(record: Record, n: int | None = None) -> float:
    """Tokens a second over the first n decoded tokens, all by default."""
    seconds: list[float] = record["token_s"][:n]
    return len(seconds) / sum(seconds)


def hit_rate(record: Record) -> float | None:
    """Share of the expert uses in decode that were in the cache, None for an engine without one."""
    decode = record["decode"]
    uses = decode.get("n_hit", 0) + decode.get("n_miss", 0)
    return decode["n_hit"] / uses if uses else None


@dataclass(frozen=True)
class Bound:
    """The least time that drive and processor allow, and what of it was reached.

    io_s: bytes read at the drive's measured speed. compute_s: the same work with every expert in memory, None if that
    was not measured. efficiency (of the pipeline): the larger of the two over the time taken, 1 is the limit.
    """

    io_s: float
    compute_s: float | None
    taken_s: float
    efficiency: float


def bound(read_bytes: float, disk_bytes_per_s: float, compute_s: float | None, taken_s: float) -> Bound:
    """See Bound; times are of the same piece of work."""
    io_s = read_bytes / disk_bytes_per_s
    return Bound(io_s, compute_s, taken_s, max(io_s, compute_s or 0.0) / taken_s)


def summarise(
    records: Sequence[Record],
    n_prefill: int,
    *,
    disk_bytes_per_s: float | None,
    resident: Record | None = None,
    best_bytes_per_token: float | None = None,
) -> dict[str, Any]:
    """For each side its quantities as {median, low, high, n}; ratios of medians of ours to each other.

    best_bytes_per_token: what Belady's optimum would read in decode. better_stock: of llama.cpp's settings the one that
    decodes faster, None where there is none.
    """
    sides: dict[str, list[Record]] = {}
    for record in records:
        sides.setdefault(record["side"], []).append(record)
    summary: dict[str, Any] = {"sides": {}}
    for name, own in sides.items():
        quantities = {key: asdict(spread(values)) for key, values in _quantities(own, n_prefill).items() if values}
        # The drive was measured in our reads, the computation with our engine: they bound no other.
        bounds = _bounds(own, n_prefill, disk_bytes_per_s, resident) if name not in _STOCKS and disk_bytes_per_s else {}
        read = quantities.get("decode_bytes_per_token")
        if name not in _STOCKS and best_bytes_per_token is not None and read and read["median"]:
            quantities["policy"] = asdict(spread([best_bytes_per_token / read["median"]]))
        summary["sides"][name] = {**quantities, "bounds": bounds}
    stocks = {name: summary["sides"][name]["decode_tok_s"]["median"] for name in _STOCKS if name in sides}
    summary["better_stock"] = max(stocks, key=lambda name: stocks[name]) if stocks else None
    ours = sides.get(OURS)
    summary["ratios"] = {name: _ratios(ours, own, n_prefill) for name, own in sides.items() if ours and name != OURS}
    return summary


def _quantities(records: Sequence[Record], n_prefill: int) -> dict[str, list[float]]:
    def each(value: Callable[[Record], float | None]) -> list[float]:
        return [found for found in map(value, records) if found is not None]

    return {
        "decode_tok_s": each(lambda r: decode_rate(r) if r["token_s"] else None),
        "prefill_tok_s": each(lambda r: n_prefill / r["prefill_s"] if n_prefill else None),
        "first_token_s": each(lambda r: r["first_token_s"]),
        "load_s": each(lambda r: r["load_s"]),
        "hit_rate": each(hit_rate),
        "decode_bytes_per_token": each(_decode_bytes),
        "prefill_bytes": each(lambda r: _read_bytes(r["prefill"]) if n_prefill else None),
        "stall_share": each(lambda r: _share(r, "stall_ns")),
        "drive_share": each(lambda r: _share(r, "drive_ns")),
        "prefetch_used": each(_prefetch_used),
        "late_share": each(_late_share),
        "limit_peak_bytes": each(lambda r: r["limit_peak_bytes"]),
        "peak_rss_bytes": each(lambda r: r["peak_rss_bytes"]),
    }


def _read_bytes(counters: dict[str, int]) -> float | None:
    """What the engine read of experts; for an engine without counters what the kernel read for it."""
    return counters.get("read_bytes", counters.get("drive_bytes"))


def _decode_bytes(record: Record) -> float | None:
    read = _read_bytes(record["decode"])
    return read / len(record["token_s"]) if record["token_s"] and read is not None else None


def _share(record: Record, counter: str) -> float | None:
    """Of the time of decode."""
    spent = record["decode"].get(counter)
    return spent / 1e9 / sum(record["token_s"]) if record["token_s"] and spent is not None else None


def _prefetch_used(record: Record) -> float | None:
    """Share of the experts read ahead in decode that were used."""
    n = record["decode"].get("n_prefetch", 0)
    return record["decode"]["n_prefetch_used"] / n if n else None


def _late_share(record: Record) -> float | None:
    """Share of the uses in decode that found the expert on its way."""
    decode = record["decode"]
    uses = decode.get("n_hit", 0) + decode.get("n_miss", 0)
    return decode.get("n_late", 0) / uses if uses else None


def _bounds(
    records: Sequence[Record], n_prefill: int, disk_bytes_per_s: float, resident: Record | None
) -> dict[str, Any]:
    """Bounds of the repetition with the median speed."""
    found: dict[str, Any] = {}
    if records[0]["token_s"]:
        record = sorted(records, key=decode_rate)[len(records) // 2]
        read = _decode_bytes(record)
        compute_s = 1 / decode_rate(resident) if resident and resident["token_s"] else None
        if read is not None:
            found["decode"] = asdict(bound(read, disk_bytes_per_s, compute_s, 1 / decode_rate(record)))
    if n_prefill:
        record = sorted(records, key=lambda r: -float(r["prefill_s"]))[len(records) // 2]
        read = _read_bytes(record["prefill"])
        compute_s = resident["prefill_s"] if resident else None
        if read is not None:
            found["prefill"] = asdict(bound(read, disk_bytes_per_s, compute_s, record["prefill_s"]))
    return found


def _ratios(ours: Sequence[Record], theirs: Sequence[Record], n_prefill: int) -> dict[str, float | None]:
    """How many times faster ours is, by medians. decode_same_tokens: over the tokens that both decoded."""

    def median(records: Sequence[Record], value: Callable[[Record], float]) -> float:
        return statistics.median(map(value, records))

    ratios: dict[str, float | None] = {
        "first_token": median(theirs, lambda r: r["first_token_s"]) / median(ours, lambda r: r["first_token_s"])
    }
    if ours[0]["token_s"] and theirs[0]["token_s"]:
        n = min(len(ours[0]["token_s"]), len(theirs[0]["token_s"]))
        ratios["decode"] = median(ours, decode_rate) / median(theirs, decode_rate)
        ratios["decode_same_tokens"] = median(ours, lambda r: decode_rate(r, n)) / median(
            theirs, lambda r: decode_rate(r, n)
        )
    if n_prefill:
        ratios["prefill"] = median(theirs, lambda r: r["prefill_s"]) / median(ours, lambda r: r["prefill_s"])
    if len(ours) < 2 or len(theirs) < 2:
        return dict.fromkeys(ratios)  # a ratio of single runs says nothing
    return ratios
