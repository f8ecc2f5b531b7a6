"""What leaving out experts costs, as clients and the page are told."""

from __future__ import annotations

from msgspec import Struct

from ..runtime.engine.stats import Stats


class Lossy(Struct, frozen=True):
    """The price named and what is spent of it, nats a token, a mean over about the last 200; the share of expert uses
    that were left out.
    """

    price_nats: float
    spent_nats: float
    skip_rate: float


def lossy_of(part: Stats) -> Lossy | None:
    """part: the counters of an answer, or of a while. None where nothing is left out."""
    return Lossy(part.lossy_nats, part.spent_nats, part.skip_rate) if part.lossy_nats else None
