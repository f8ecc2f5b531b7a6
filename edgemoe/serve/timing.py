"""How long an answer took, in llama.cpp's words: `timings`."""

from __future__ import annotations

import time

from msgspec import Struct

from ..runtime.text.stream import Step


class Timings(Struct, frozen=True):
    """n: tokens; ms: milliseconds. prompt: those that were computed; cache: those that were there already."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class Clock:
    """Times the choices of a request, one after another."""

    def __init__(self) -> None:
        self.n_predicted = 0
        self._n_prompt = self._n_cached = 0
        self._prompt_s = self._predicted_s = 0.0
        self._last = time.monotonic()
        self._in_prompt = True

    def begin(self) -> None:
        """A choice's prompt is about to be computed."""
        self._last, self._in_prompt = time.monotonic(), True

    def prompt_done(self, n_prompt: int, n_cached: int) -> None:
        now = time.monotonic()
        self._prompt_s += now - self._last
        self._n_prompt += n_prompt - n_cached
        self._n_cached += n_cached
        self._last, self._in_prompt = now, False

    def step(self, step: Step, n_prompt: int, n_cached: int) -> None:
        self.end(n_prompt, n_cached)
        now = time.monotonic()
        self._predicted_s += now - self._last
        self._last = now
        self.n_predicted += step.token >= 0

    def end(self, n_prompt: int, n_cached: int) -> None:
        """The prompt is computed, also where no token came after it."""
        if self._in_prompt:
            self.prompt_done(n_prompt, n_cached)

    def timings(self) -> Timings:
        prompt, predicted = (
            self._rates(self._n_prompt, self._prompt_s),
            self._rates(self.n_predicted, self._predicted_s),
        )
        return Timings(self._n_cached, *prompt, *predicted)

    @staticmethod
    def _rates(n: int, seconds: float) -> tuple[int, float, float, float]:
        ms = round(seconds * 1000, 3)
        return n, ms, round(ms / n, 3) if n else 0.0, round(n / seconds, 3) if seconds > 0 else 0.0
