"""Whose turn it is among several answers, with a backend that computes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from edgemoe.runtime.engine import passes
from edgemoe.runtime.engine.passes import Passes


class Turns:
    """Notes which seat computes how many tokens. hook: called before each batch with the number of those so far."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.hook: Callable[[int], None] = lambda n: None
        self.n_past = 0
        self._seat = 0

    def select(self, seat: int) -> None:
        self._seat = seat

    def decode(self, tokens: Sequence[int], *, want_all: bool) -> None:
        self.hook(len(self.seen))
        self.seen.append((self._seat, len(tokens)))

    def close(self) -> None:
        pass


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Passes, Turns]]:
    monkeypatch.setattr(passes, "_LEAST_PATIENCE_S", 1.0)  # whoever comes back is waited for, on any machine
    backend = Turns()
    made = Passes(backend, 3, 8)  # type: ignore[arg-type]
    yield made, backend
    made.close()


def run(works: list[Callable[[], Any]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    return threads


def test_a_newcomers_first_steps_wait_for_one_batch_of_anothers_prompt(computing: tuple[Passes, Turns]) -> None:
    made, backend = computing
    begun, asked = threading.Event(), threading.Event()

    def hook(n: int) -> None:
        begun.set()
        if n == 1:  # the second batch is under way when the newcomer asks
            asked.wait(20)

    backend.hook = hook

    def newcomer() -> None:
        begun.wait(20)
        threading.Timer(0.05, asked.set).start()
        for _ in range(3):  # cuts the sequence, takes up a state, …
            made.call(1, lambda: None)
        made.decode(1, [1] * 5, want_all=False)

    threads = run([lambda: made.decode(0, [1] * 80, want_all=False), newcomer])
    for thread in threads:
        thread.join(30)
    assert backend.seen.index((1, 5)) <= 2 and len(backend.seen) == 11


def test_newcomers_who_keep_coming_take_turns_with_a_long_prompt(computing: tuple[Passes, Turns]) -> None:
    made, backend = computing
    first = threading.Event()
    backend.hook = lambda n: first.set()

    def newcomers() -> None:
        first.wait(20)
        for _ in range(5):
            made.decode(1, [1] * 5, want_all=False)
            made.call(1, lambda: None)

    for thread in run([lambda: made.decode(0, [1] * 80, want_all=False), newcomers]):
        thread.join(30)
    order = [seat for seat, _ in backend.seen]
    assert order.count(0) == 10 and order.count(1) == 5
    last = len(order) - order[::-1].index(0)  # of the long one
    assert not any(order[i : i + 2] == [1, 1] for i in range(last - 1)), order
