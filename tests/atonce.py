"""Jobs that run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What jobs return that run at the same time, or what they raise."""
    found: list[Any] = [None] * len(jobs)

    def run(i: int) -> None:
        try:
            found[i] = jobs[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
