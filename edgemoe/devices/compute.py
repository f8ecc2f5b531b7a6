"""Speed of the decode kernels on this machine: weight bytes a second, by ggml type."""

from __future__ import annotations

from .. import _native
from ..paths import read_cached, write_cached
from .cpu import cpu_name

_MOST = 1e15  # bytes a second: what is remembered may have been damaged
_MAX_NS = 500_000_000


def measure_compute(type_name: str, n_threads: int, *, fresh: bool = False) -> float:
    """Bytes a second of the row kernel for weights of a ggml type ("Q4_K"): half a second, once a machine and library.

    Raises UnsupportedError for a type without a kernel.
    """
    known = None if fresh else cached_compute(type_name, n_threads)
    if known is not None:
        return known
    rate = float(_native.compute_measure(type_name, n_threads, _MAX_NS))
    write_cached("compute.json", {**read_cached("compute.json"), _key(type_name, n_threads): rate})
    return rate


def cached_compute(type_name: str, n_threads: int) -> float | None:
    """What `measure_compute` found before, None when it has not been asked."""
    known = read_cached("compute.json").get(_key(type_name, n_threads))
    return float(known) if isinstance(known, (int, float)) and 0 < known < _MOST else None


def forget_compute(type_name: str, n_threads: int) -> None:
    """Let the next `measure_compute` measure."""
    measurements = read_cached("compute.json")
    if measurements.pop(_key(type_name, n_threads), None) is not None:
        write_cached("compute.json", measurements)


def _key(type_name: str, n_threads: int) -> str:
    return f"{cpu_name()}; {_native.build_stamp()}; {type_name}; {n_threads} threads"
