"""A real `edgemoe serve` on loopback, and small helpers to talk to it without any client library."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent


class Served:
    """A server that runs. talk: what it has said on stderr so far."""

    def __init__(self, process: subprocess.Popen[str], port: int, talk: list[str]) -> None:
        self.process = process
        self.port = port
        self.talk = talk
        self.url = f"http://127.0.0.1:{port}"

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON body (or text) of an answer."""
        status, _, content = self.exchange(path, body, method=method, headers=headers, raw=raw)
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode()

    def exchange(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        try:
            content = raw if raw is not None else json.dumps(body).encode() if body is not None else None
            sent = {"Content-Type": "application/json"} if content is not None else {}
            verb = method or ("POST" if content is not None else "GET")
            connection.request(verb, path, content, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def stream(self, path: str, body: Any) -> Generator[Any, None, None]:
        """The objects of an event stream. Leaving the loop breaks the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            while True:
                line = answer.readline().decode().strip()
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield json.loads(line[6:])
                assert line or not answer.isclosed(), "the stream ended without [DONE]"
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Values of /metrics by name with labels."""
        text = self.ask("/metrics")[1]
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def until_idle(self, seconds: float = 60) -> None:
        """Wait until nothing is computed and nobody waits."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.live()
            if state["state"] == "idle" and not state["waiting"]:
                return
            time.sleep(0.05)
        raise AssertionError("the server is still busy")

    def live(self) -> Any:
        """One snapshot of /api/live."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=900)
        try:
            connection.request("GET", "/api/live")
            return json.loads(connection.getresponse().readline().decode()[6:])
        finally:
            connection.close()

    def rss_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) * 1024


@contextmanager
def serve(
    cache: Path,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    joiner: Callable[[], None] | None = None,
) -> Iterator[Served]:
    """`edgemoe serve ARGUMENTS` on a free port, until the block ends. joiner: of a kernel limit (`memory_limit`)."""
    environment = {
        **os.environ,
        "EDGEMOE_CACHE": str(cache),
        "PYTHONPATH": str(PACKAGE),
        "PYTHONUTF8": "1",
        **(env or {}),
    }
    command = [sys.executable, "-m", "edgemoe", "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=joiner)
    assert process.stderr is not None
    talk: list[str] = []
    port = 0
    for line in process.stderr:
        talk.append(line.rstrip())
        found = re.search(r"http://[^ ]*:(\d+) \(Ctrl-C stops\)", line)
        if found:
            port = int(found[1])
            break
    assert port, "\n".join(talk)
    try:
        yield Served(process, port, talk)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, code = process.stderr.read(), process.wait(600)
        talk += rest.splitlines()
    assert code == 0 and "Traceback" not in "\n".join(talk), "\n".join(talk)
