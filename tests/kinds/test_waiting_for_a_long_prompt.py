"""A client that waits behind others, or for a long prompt, hears that the server lives, and how far it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from edgemoe.serve import flow, wire
from edgemoe.serve.events import Finished, Started, Used, Words
from edgemoe.serve.failures import ApiError
from edgemoe.serve.intake import Intake
from edgemoe.serve.live import RequestCounts
from edgemoe.serve.openai_api import ChatShape
from edgemoe.serve.responses import Frame
from edgemoe.serve.worker import Job


class SlowWorker:
    """Answers as told, so many seconds before each event. n_done: tokens of the prompt that are computed."""

    def __init__(self, events: list[tuple[float, Any]]) -> None:
        self._events = events
        self.n_done = 0

    async def events(self, job: Job) -> AsyncGenerator[Any, None]:
        for seconds, event in self._events:
            await asyncio.sleep(seconds)
            if isinstance(event, Exception):
                raise event
            yield event

    def progress(self, job: Job) -> tuple[int, int]:
        self.n_done = min(self.n_done + 100, 500)
        return self.n_done, 60


def streamed(events: list[tuple[float, Any]], *, progress: bool = False) -> tuple[int, str]:
    """Status and text of a stream."""

    async def main() -> tuple[int, str]:
        worker: Any = SlowWorker(events)
        made = flow.Flow(worker, RequestCounts(), Intake(lambda: 1 << 30), strict=False)
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        request: Any = type("Asked", (), {"receive": staticmethod(receive)})()
        shape = ChatShape(Frame("chatcmpl", "m", "fp"), with_usage=False)
        response = await made.answer(request, "m", lambda engine: iter(()), shape, stream=True, progress=progress)
        await response({"type": "http"}, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(flow, "_PROGRESS_S", 0.05)
    monkeypatch.setattr(flow, "PING_S", 0.15)
    monkeypatch.setattr(wire, "PING_S", 0.15)


ANSWER = [(0.0, Words(0, "hi")), (0.0, Finished(0, "stop")), (0.0, Used(500, 0, 1))]


def test_a_stream_begins_while_it_waits_behind_others() -> None:
    status, text = streamed([(0.6, Started(1, (), 500)), *ANSWER])
    assert status == 200 and text.startswith(": waiting\n\n") and text.count(": waiting") >= 2
    assert text.endswith("data: [DONE]\n\n") and '"content":"hi"' in text


def test_a_long_prompt_is_waited_for() -> None:
    _, text = streamed([(0.0, Started(1, (), 500)), (0.5, Words(0, "hi")), *ANSWER[1:]])
    assert text.count(": waiting") >= 2 and "prompt_progress" not in text


def test_progress_is_told_to_who_asks() -> None:
    _, text = streamed([(0.0, Started(1, (), 500)), (0.4, Words(0, "hi")), *ANSWER[1:]], progress=True)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert len(told) >= 3 and told[0]["total"] == 500 and told[0]["cache"] == 60
    assert [one["processed"] for one in told] == sorted({one["processed"] for one in told})
    assert all(one["processed"] <= 500 for one in told)


def test_a_late_refusal_is_said_in_the_stream() -> None:
    status, text = streamed([(0.3, ApiError(400, "no such grammar"))])
    assert status == 200 and "no such grammar" in text
    with pytest.raises(ApiError):  # an early one with its status
        streamed([(0.0, ApiError(400, "no such grammar"))])
