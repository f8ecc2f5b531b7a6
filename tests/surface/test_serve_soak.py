"""32 clients at once, many of which go away in the middle: memory stays flat, nobody gets another's answer.

Then the same under a kernel limit of the budget, with half-sent bodies, conversations that go on, and other budgets.

EDGEMOE_SOAK_S=300 ./dev test -m slow -k soak -s      # five minutes, with a line of figures; 30 s otherwise
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

from edgemoe.bench.limit import LimitUnavailable, memory_limit

pytestmark = [pytest.mark.slow, needs_library]

N_CLIENT = 32
SECONDS = float(os.environ.get("EDGEMOE_SOAK_S", "30"))
BUDGET_MIB = 160
CHAT = "/v1/chat/completions"


class Client(threading.Thread):
    """Asks until told to stop. n_good: whole answers; n_left: those it left; wrong: what was not its own."""

    refusals: tuple[int, ...] = (429,)

    def __init__(self, server: Served, number: int, expected: dict[str, str], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.number, self.expected, self.stop = server, number, expected, stop
        self.random = random.Random(number)
        self.n_good = self.n_left = self.n_full = 0
        self.wrong: list[Any] = []

    def run(self) -> None:
        while not self.stop.is_set() and not self.wrong:
            try:
                self.random.choice(self.ways())()
            except OSError as error:
                self.wrong.append(error)

    def ways(self) -> list[Callable[[], None]]:
        return [self.marked, self.known, self.leave]

    def ask(self, body: Any) -> Any:
        status, answer = self.server.ask(CHAT, body)
        if status in self.refusals:
            self.n_full += 1
            time.sleep(0.05)
            return None
        if status != 200:
            self.wrong.append((status, answer))
            return None
        return answer["choices"][0]["message"]["content"]

    def marked(self) -> None:
        """An answer that a grammar forces to carry this client's mark."""
        mark = f"{self.number}-{self.random.randrange(10**9)}"
        schema = {
            "properties": {"mark": {"const": mark}, "word": {"type": "string", "maxLength": 8}},
            "required": ["mark"],
        }
        form = {"type": "json_schema", "json_schema": {"name": "m", "schema": schema}}
        text = self.ask(_body(f"say {mark}", response_format=form, max_tokens=120))
        if text is not None:
            self.note(json.loads(text).get("mark") == mark, text)

    def known(self) -> None:
        """An answer that was given before, alone."""
        question = self.random.choice(list(self.expected))
        text = self.ask(_body(question))
        if text is not None:
            self.note(text == self.expected[question], (question, text))

    def leave(self) -> None:
        """Go away after some pieces of a stream."""
        pieces = 0
        stream = self.server.stream(CHAT, _body(f"tell {self.random.random()}", stream=True, max_tokens=200))
        try:
            for _ in stream:
                pieces += 1
                if pieces > self.random.randrange(1, 40):
                    self.n_left += 1
                    break
        except AssertionError as error:
            if not self.refused(error):
                raise
            self.n_full += 1
            time.sleep(0.05)
        finally:
            stream.close()

    def refused(self, error: AssertionError) -> bool:
        return "queue_full" in str(error)

    def note(self, good: bool, found: Any) -> None:
        self.n_good += good
        if not good:
            self.wrong.append(found)


def _body(question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "tiny", "messages": messages, "max_tokens": 24, "cache_prompt": False, **fields}


def _tokens(server: Served) -> float:
    return server.metrics()["edgemoe_decode_tokens_total"]


def _watch(server: Served, seconds: float) -> tuple[float, list[int]]:
    """Seconds that were worked, and the server's resident memory meanwhile. While it is suspended nobody works."""
    awake, rss = 0.0, []
    while awake < seconds:
        begin = time.monotonic()
        time.sleep(0.5)
        rss.append(server.rss_bytes())
        awake += min(time.monotonic() - begin, 1.0)
    return awake, rss


@pytest.mark.parametrize("parallel", [1, 4])
def test_soak(tmp_path: Path, parallel: int) -> None:
    path = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe", n_layer=4, n_expert=32, n_used=4)
    memory = f"{BUDGET_MIB}MiB"
    options = ("--threads", 1, "--ctx", 512, "--memory", memory, "--queue", N_CLIENT, "--parallel", parallel)
    with serving.serve(tmp_path / "cache", path, *options) as server:
        questions = [
            f"what about {word}" for word in ("the", "interior", "other", "theme", "thing", "inner", "era", "ant")
        ]
        expected = {}
        for question in questions:
            answer = server.ask(CHAT, _body(question))[1]
            expected[question] = answer["choices"][0]["message"]["content"]
        assert len(set(expected.values())) == len(questions)

        alone = Client(server, 0, expected, threading.Event())
        before = _tokens(server)
        alone.start()
        awake, _ = _watch(server, min(20, SECONDS / 3))
        one_client = (_tokens(server) - before) / awake
        alone.stop.set()
        alone.join(600)

        stop = threading.Event()
        clients = [Client(server, i + 1, expected, stop) for i in range(N_CLIENT)]
        before = _tokens(server)
        for client in clients:
            client.start()
        awake, rss = _watch(server, SECONDS)
        many_clients = (_tokens(server) - before) / awake
        stop.set()
        for client in clients:
            client.join(600)
        server.until_idle()

        wrong = [found for client in [alone, *clients] for found in client.wrong]
        assert not wrong, wrong[:3]
        good, left = sum(c.n_good for c in clients), sum(c.n_left for c in clients)
        assert good > N_CLIENT and left > N_CLIENT / 2
        peak = server.live()["memory"]["peak"]
        middle, last = max(rss[len(rss) // 4 : len(rss) // 2]), max(rss[-len(rss) // 4 :])
        print(
            f"\n--parallel {parallel}, {SECONDS:.0f} s: {good} whole answers, {left} left, "
            f"{sum(c.n_full for c in clients)} refused; "
            f"{one_client:.0f} tok/s for one client, {many_clients:.0f} for {N_CLIENT}; "
            f"RSS {middle / 2**20:.1f} MiB in the second quarter, {last / 2**20:.1f} in the last, "
            f"peak {peak / 2**20:.1f} of {BUDGET_MIB}"
        )
        assert peak <= BUDGET_MIB << 20
        assert last < middle + (4 << 20)


# ---------------------------------------------------------------- under a kernel limit

N_HALF = 200
HALF_BYTES = 900_000


class Pressed(Client):
    """Where connections and bodies are more than the server holds, it refuses some; conversations go on."""

    refusals = (429, 503)

    def run(self) -> None:
        while not self.stop.is_set() and not self.wrong:
            try:
                self.random.choice(self.ways())()
            except (ConnectionError, http.client.HTTPException):  # one connection too many
                self.n_full += 1
                time.sleep(0.05)

    def ways(self) -> list[Callable[[], None]]:
        return [*super().ways(), self.talk]

    def talk(self) -> None:
        """Turns of a conversation, whose states come, go to the disk and come back."""
        turns: list[dict[str, str]] = []
        for i in range(self.random.randrange(1, 4)):
            turns.append({"role": "user", "content": f"{self.number} says {i} of the theme of the interior"})
            text = self.ask({"model": "tiny", "messages": turns, "max_tokens": 12})
            if text is None:
                return
            turns.append({"role": "assistant", "content": text})
        self.n_good += 1

    def refused(self, error: AssertionError) -> bool:
        return super().refused(error) or "too_many" in str(error) or "503" in str(error)


def _send_halves(port: int, stop: threading.Event, sent: list[int]) -> None:
    """Bursts of bodies of which half is sent, and kept open as long as the server likes. sent: connections so far."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    start = f"{head}Content-Length: {HALF_BYTES}\r\n\r\n".encode()
    while not stop.is_set():
        held: list[socket.socket] = []
        for _ in range(N_HALF):
            with contextlib.suppress(OSError):
                held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                held[-1].sendall(start + b" " * (HALF_BYTES // 2))
                sent[0] += 1
        stop.wait(12)
        for one in held:
            one.close()
        stop.wait(3)


def _change_budgets(server: Served, budgets: list[int], stop: threading.Event, statuses: list[str]) -> None:
    for budget in itertools.cycle(budgets):
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, said = server.ask("/api/budget", {"memory": f"{budget}MiB"})
            statuses.append("changed" if status == 200 else said["error"]["message"])
        if stop.wait(2):
            return


def test_soak_under_a_kernel_limit(tmp_path: Path) -> None:
    path = tinymoe.write(tmp_path / "tiny.gguf", "qwen3moe", n_layer=8, n_expert=64, n_used=4)
    budget = 120  # half of the experts fit
    options = ("--threads", 1, "--ctx", 512, "--memory", f"{budget}MiB", "--queue", N_CLIENT, "--parallel", 4)
    kept = ("--keep-states", "16MiB")
    try:
        with (
            memory_limit(budget << 20, f"edgemoe-soak-{time.monotonic_ns()}") as limit,
            serving.serve(tmp_path / "cache", path, *options, *kept, joiner=limit.joiner()) as server,
        ):
            least = -(-server.live()["memory"]["smallest"] // 2**20)
            assert least < budget
            _soak(server, [least, (least + budget) // 2, budget])
            assert limit.n_kill() == 0
            peak = limit.peak_bytes()
            print(f"the kernel charged {(peak or 0) / 2**20:.1f} MiB at most of {budget}, and killed nothing")
    except LimitUnavailable as error:
        pytest.skip(str(error))


def _soak(server: Served, budgets: list[int]) -> None:
    """budgets: MiB, up to the kernel's limit."""
    questions = [f"what about {word}" for word in ("the", "interior", "other", "theme", "thing", "inner")]
    expected = {
        question: server.ask(CHAT, _body(question))[1]["choices"][0]["message"]["content"] for question in questions
    }
    stop = threading.Event()
    sent = [0]
    statuses: list[str] = []
    clients = [Pressed(server, i + 1, expected, stop) for i in range(N_CLIENT)]
    others = [
        threading.Thread(target=_send_halves, args=(server.port, stop, sent)),
        threading.Thread(target=_change_budgets, args=(server, budgets, stop, statuses)),
    ]
    for thread in (*clients, *others):
        thread.start()
    awake, rss = _watch(server, SECONDS)
    stop.set()
    for thread in (*clients, *others):
        thread.join(600)
    server.until_idle()
    wrong = [found for client in clients for found in client.wrong]
    assert not wrong, wrong[:3]
    good, left = sum(c.n_good for c in clients), sum(c.n_left for c in clients)
    assert good > N_CLIENT and left and sent[0] > N_HALF / 2 and "changed" in statuses
    # What the process holds by then may be too much for less, but not for what it is held in.
    assert not any(status.startswith(f"{budgets[-1]} MiB is too small") for status in statuses)
    for question, text in expected.items():  # and afterwards
        assert server.ask(CHAT, _body(question))[1]["choices"][0]["message"]["content"] == text
    peak = server.live()["memory"]["peak"]
    print(
        f"\n{awake:.0f} s, {N_CLIENT} clients: {good} whole answers, {left} left, "
        f"{sum(c.n_full for c in clients)} refused; {sent[0]} half-sent bodies; budgets: {Counter(statuses)}; "
        f"RSS {max(rss) / 2**20:.1f} MiB at most, peak {peak / 2**20:.1f} of {budgets}"
    )
    assert peak <= budgets[-1] << 20
