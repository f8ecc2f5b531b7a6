"""Clients that send half a request, too many, too slowly, or go: nothing is held for them for ever or without bound."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import serving
import tinymoe
from console import needs_library
from serving import Served

from edgemoe.serve import connections, intake
from edgemoe.serve.failures import ApiError
from edgemoe.serve.run import Settings, listening

CHAT = "/v1/chat/completions"
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("half")
    model = tinymoe.write(folder / "m.gguf", "qwen3moe")
    with serving.serve(folder / "cache", model, "--threads", 1, "--ctx", 512, "--memory", "200MiB", "-v") as found:
        yield found


def opened(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def head(length: int) -> bytes:
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def answer_of(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    data = b""
    try:
        while part := connection.recv(65536):
            data += part
    except OSError:
        pass
    return data


def test_an_accepted_connection_sends_at_once() -> None:
    """With Nagle's algorithm every answer on a kept connection waits 40 ms for the client's acknowledgement."""

    async def option() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Seen(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted = transport.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with listening(Settings(port=0)) as listener:
            front = await asyncio.get_running_loop().create_server(Seen, sock=listener)
            client = socket.create_connection(listener.getsockname())
            value = await found
            client.close()
            front.close()
        return value

    assert asyncio.run(option()) != 0


@needs_library
def test_half_sent_bodies_stay_inside_the_budget(server: Served) -> None:
    before = server.rss_bytes()
    half = b'{"messages": [{"role": "user", "content": "' + b"x" * 900_000
    clients = [opened(server) for _ in range(100)]
    for client in clients:
        client.settimeout(0.2)
        try:
            client.sendall(head(1_000_000) + half)
        except OSError:  # it was refused in the middle, or nobody reads
            continue
    time.sleep(0.5)
    assert server.rss_bytes() < before + 48 * MIB
    assert server.rss_bytes() < 200 * MIB
    # Who asks a little is answered meanwhile.
    status, _ = server.ask(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    assert status == 200
    for client in clients:
        client.close()
    assert "Traceback" not in "\n".join(server.talk)


@needs_library
def test_waiting_requests_are_held_as_the_bytes_that_came(server: Served) -> None:
    """A list of lists takes twenty times its text."""
    body = json.dumps(
        {"prompt": "x", "max_tokens": 1, "logit_bias": {}, "tools": [[] for _ in range(200_000)]}
    ).encode()
    statuses: list[int] = []
    before = server.rss_bytes()
    running = server.stream(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 400, "stream": True})
    next(running)

    def ask() -> None:
        statuses.append(server.exchange("/v1/completions", raw=body)[0])

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    peak = 0
    while any(thread.is_alive() for thread in threads):
        peak = max(peak, server.rss_bytes())
        time.sleep(0.01)
    running.close()
    assert set(statuses) <= {200, 429, 503} and peak < before + 64 * MIB


@needs_library
def test_more_connections_than_there_is_room_for(server: Served) -> None:
    idle = [opened(server) for _ in range(connections.MAX_CONNECTIONS + 20)]
    said = answer_of(idle[-1])
    assert said == b"" or said.startswith(b"HTTP/1.1 503 ")
    for client in idle:
        client.close()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if server.ask("/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not recover")


@needs_library
def test_leaving_in_the_middle_of_a_body_is_no_fault(server: Served) -> None:
    for _ in range(5):
        client = opened(server)
        client.sendall(head(1000) + b'{"mess')
        client.close()
    assert server.ask("/health")[0] == 200
    assert "Traceback" not in "\n".join(server.talk)


@needs_library
def test_what_is_refused_is_read_by_who_sent_it(server: Served) -> None:
    """A connection closed with bytes unread loses the answer."""
    for _ in range(5):
        client = opened(server)
        client.sendall(head(3 * MIB) + b"x" * (3 * MIB))
        assert client.recv(64).startswith(b"HTTP/1.1 413 ")
        client.close()


def test_a_body_that_does_not_come_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_SILENT_S", 0.02)
    monkeypatch.setattr(intake, "_DRAIN_S", 0.01)

    async def never() -> Any:
        await asyncio.sleep(60)

    with pytest.raises(ApiError) as caught:
        asyncio.run(intake.Intake(lambda: 200 * MIB).body(_request(never)))
    assert caught.value.status == 408


def test_bodies_are_counted_together() -> None:
    """Of a budget of 200 MiB a thirty-second part may be bodies, and of that three quarters large ones."""
    room = intake.Intake(lambda: 200 * MIB)

    async def all_of_it() -> Any:
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": False}

    async def little() -> Any:
        return {"type": "http.request", "body": b"x" * 60_000, "more_body": False}

    requests = [_request(all_of_it) for _ in range(6)]
    for request in requests[:4]:
        asyncio.run(room.body(request))
    with pytest.raises(ApiError) as caught:
        asyncio.run(room.body(requests[4]))
    assert caught.value.status == 503 and "Retry-After" in caught.value.headers
    requests += [_request(little) for _ in range(20)]
    for request in requests[6:]:
        asyncio.run(room.body(request))
    for request in (requests[0], *requests[6:]):
        room.release(request.scope)
    asyncio.run(room.body(requests[5]))
    for request in requests:
        room.release(request.scope)
    assert room.n_bytes == 0


def _request(receive: Any) -> Any:
    from starlette.requests import Request

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"content-type", b"application/json")]}
    return Request(scope, receive)


def test_a_head_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    monkeypatch.setattr(connections, "_HEAD_S", 0.2)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> list[bytes]:
        config = uvicorn.Config(app, http=connections.Connection, lifespan="off", log_config=None, ws="none")
        front = uvicorn.Server(config)
        with listening(Settings(port=0)) as listener:
            running = asyncio.ensure_future(front.serve(sockets=[listener]))
            said = []
            for before, begun in ((b"", b""), (b"", b"GET / HTT"), (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT")):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                if before:
                    writer.write(before)
                    await reader.readuntil(b"\r\n\r\n")
                writer.write(begun)
                said.append(await asyncio.wait_for(reader.read(), 10))
                writer.close()
            front.should_exit = True
            await running
        return said

    assert [b"408 Request Timeout" in said for said in asyncio.run(main())] == [True, True, True]
