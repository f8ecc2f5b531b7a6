"""One line about what an answer cost, from an engine's counters."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

from ..printable import plain_lines
from ..units import format_size

if TYPE_CHECKING:
    from ..runtime.engine.stats import Stats


def status_line(answer: Stats) -> str:
    """ "31 tokens at 12.3 tok/s, 87% hits, 45 MiB/token, 148 MiB of 160 MiB". answer: the counters of one answer.

    It ends with what is slower than it could be: "no O_DIRECT", "no io_uring".
    """
    parts = []
    if answer.n_decode:
        parts.append(f"{answer.n_decode} tokens at {answer.decode_tok_s:.1f} tok/s")
    if answer.n_hit + answer.n_miss:
        parts.append(f"{answer.hit_rate:.0%} hits")
    computed = answer.n_decode + answer.n_prefill
    if computed:
        parts.append(f"{format_size(answer.read_bytes / computed)}/token")
    if answer.lossy_nats:
        parts.append(f"lossy: {answer.spent_line}")
    parts.append(f"{format_size(answer.rss_bytes)} of {format_size(answer.budget_bytes)}")
    if answer.page_cache:
        parts.append("page cache")
    elif not answer.direct_io:
        parts.append("no O_DIRECT")
    elif answer.reader != "uring":
        parts.append("no io_uring")
    return ", ".join(parts)


DIM, PLAIN = "\033[2m", "\033[0m"


def takes_colour(stream: TextIO) -> bool:
    """Whether the stream is a terminal that can be told to write in grey, and nobody minds."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    """The text in grey where the stream takes colour."""
    return f"{DIM}{text}{PLAIN}" if takes_colour(stream) else text


def note(text: str) -> None:
    """A grey line of talk on stderr."""
    print(dim(plain_lines(text), sys.stderr), file=sys.stderr, flush=True)


def say(*lines: str) -> None:
    """Lines for people on stdout. What names of models and files put into them is escaped."""
    print("\n".join(plain_lines(line) for line in lines))
