"""An answer in the words of llama.cpp's `/completion`."""

from __future__ import annotations

from typing import Any

from .events import Event, Finished, Used, Words, used_in
from .failures import ApiError
from .responses import PromptProgress
from .scoring import LogProb
from .wire import SSE_KIND, SSE_WAITING, sse


class NativeShape:
    kind = SSE_KIND

    def __init__(self, model: str, *, with_tokens: bool, with_probs: bool) -> None:
        self._model = model
        self._with_tokens = with_tokens
        self._with_probs = with_probs
        self._finished: Finished | None = None
        self._n = 0

    def pieces(self, event: Event) -> bytes:
        if isinstance(event, Words):
            self._n += len(event.tokens)
            if not (event.text or event.tokens):
                return b""
            piece = self._begin(event.text, event.tokens) | {"stop": False, "tokens_predicted": self._n}
            if event.timings:
                piece["timings"] = event.timings
            return sse(piece | self._probs(event.logprobs))
        if isinstance(event, Finished):
            self._finished = event
        if isinstance(event, Used):
            return sse(self._last("", (), event))
        return b""

    def end(self) -> bytes:
        return b""

    def failure(self, error: ApiError) -> bytes:
        return sse(error.body())

    def ping(self) -> bytes:
        return SSE_WAITING

    def progress(self, progress: PromptProgress) -> bytes:
        return sse(self._begin("", ()) | {"stop": False, "prompt_progress": progress})

    def whole(self, events: list[Event]) -> Any:
        words = [event for event in events if isinstance(event, Words)]
        self._finished = next((event for event in events if isinstance(event, Finished)), None)
        used = used_in(events)
        text, tokens = "".join(one.text for one in words), tuple(token for one in words for token in one.tokens)
        told = tuple(one for event in words for one in event.logprobs)
        return self._last(text, tokens if self._with_tokens else (), used) | self._probs(told)

    def _begin(self, text: str, tokens: tuple[int, ...]) -> dict[str, Any]:
        return {"index": 0, "content": text, "tokens": list(tokens), "id_slot": 0}

    def _last(self, text: str, tokens: tuple[int, ...], used: Used) -> dict[str, Any]:
        ended = self._finished or Finished(0, "stop")
        kind = "limit" if ended.reason == "length" else "word" if ended.stop else "eos"
        return self._begin(text, tokens) | {
            "stop": True,
            "model": self._model,
            "tokens_predicted": used.n_completion,
            "tokens_evaluated": used.n_prompt,
            "tokens_cached": used.n_prompt + used.n_completion,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": ended.stop,
            "timings": used.timings,
        }

    def _probs(self, logprobs: tuple[LogProb, ...]) -> dict[str, Any]:
        return {"completion_probabilities": [_prob(one) for one in logprobs]} if self._with_probs else {}


def _prob(one: LogProb) -> dict[str, Any]:
    top = [_token(piece, value) for piece, value in one.top]
    return {"id": one.token, **_token(one.piece, one.logprob), "top_logprobs": top}


def _token(piece: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": max(logprob or 0.0, -9999.0)}
