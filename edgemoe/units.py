"""Parse and print sizes. Imports nothing of ours but errors.

K, M, G, T and KiB, MiB, GiB, TiB count in 1024, as users of llama.cpp and Ollama expect; KB, MB, GB, TB count in 1000.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from .errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_FACTOR = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _FACTOR[_letter] = _FACTOR[f"{_letter}IB"] = 1024**_power
    _FACTOR[f"{_letter}B"] = 1000**_power

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)")
_LARGEST = 1 << 60  # beyond any machine, and well inside the uint64_t of the C interface


@dataclass(frozen=True)
class Memory:
    """A memory budget as the user gave it.

    kind "bytes": value is bytes; "percent": value is in (0, 100]; "auto": value is 0.
    """

    kind: Literal["bytes", "percent", "auto"]
    value: float

    def __str__(self) -> str:
        if self.kind == "auto":
            return "auto"
        return f"{self.value:g}%" if self.kind == "percent" else format_exact(int(self.value))


def parse_size(text: str | int) -> int:
    """Bytes of "6GiB", "1.5G", "900M", "160MB" or 4096. Raises UsageError."""
    match = _SIZE.fullmatch(str(text).strip())
    factor = _FACTOR.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"`{text}` is not a size", hint="write sizes like `6GiB`, `1.5G`, `900M` or `160MB`")
    value = float(match[1]) * factor  # digits may be hundreds: inf, which the next line refuses
    if not value <= _LARGEST:
        raise UsageError(f"`{text}` is larger than any memory", hint="write sizes like `6GiB`, `1.5G` or `900M`")
    return round(value)


def parse_memory(text: str | int) -> Memory:
    """A budget from "6GiB", "75%", "auto" or bytes. Raises UsageError."""
    cleaned = str(text).strip()
    if cleaned.lower() == "auto":
        return Memory("auto", 0)
    if cleaned.endswith("%"):
        try:
            percent = float(cleaned[:-1])
        except ValueError:
            percent = math.nan
        if not 0 < percent <= 100:
            raise UsageError(f"`{text}` is not a share of memory", hint="write a percentage above 0 and up to `100%`")
        return Memory("percent", percent)
    try:
        size = parse_size(cleaned)
    except UsageError as error:
        raise UsageError(error.message, hint="write a budget like `6GiB`, `900M`, `75%` or `auto`") from None
    if size == 0:
        raise UsageError(
            f"a memory budget of `{text}` holds nothing", hint="write a budget like `6GiB`, `75%` or `auto`"
        )
    return Memory("bytes", size)


def format_size(n_bytes: float) -> str:
    """ "1.5 GiB", "221 MiB", "12 KiB", "17 B": two or three digits that matter, for people."""
    sign, n = ("-" if n_bytes < 0 else ""), abs(n_bytes)
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if round(n / factor, 2) >= 1:
            value = n / factor
            digits = 2 if value < 10 and unit == "GiB" else 1 if value < 10 or (unit == "GiB" and value < 100) else 0
            text = f"{value:.{digits}f}"
            return f"{sign}{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"
    return f"{sign}{n:.0f} B"


def format_exact(n_bytes: int) -> str:
    """ "137MiB": the size rounded up to a whole MiB, as `parse_size` takes it back."""
    return f"{-(-n_bytes // MIB)}MiB"


def format_speeds(low: float, high: float) -> str:
    """ "5.6 to 9.4 tok/s", "120 tok/s": two digits that matter of each."""
    least, most = (f"{value:.2g}" if value < 100 else f"{float(f'{value:.2g}'):.0f}" for value in (low, high))
    return f"{least} tok/s" if least == most else f"{least} to {most} tok/s"


def format_rate(bytes_per_s: float) -> str:
    """ "850 MB/s", "2.1 GB/s": in powers of 1000, as drives are sold."""
    if bytes_per_s >= 0.9995e9:
        return f"{bytes_per_s / 1e9:.1f} GB/s"
    if bytes_per_s >= 0.9995e6:
        return f"{bytes_per_s / 1e6:.0f} MB/s"
    return f"{bytes_per_s / 1e3:.0f} kB/s"


def format_share(share: float) -> str:
    """A share of a whole number as a decimal that means it still where it is rounded down: the last digit goes up."""
    return f"{math.ceil(share * 1e4 - 1e-9) / 1e4:g}"
