"""Start the server, run it until a signal, stop it in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import uvicorn

from ..errors import StorageError, UsageError
from ..files import own_port, told_to_stop
from ..runtime.setup import Setup
from .app import Server
from .catalog import Catalog, Talk
from .connections import HEAD_BYTES, Connection
from .guard import ANYBODY, Access
from .hosts import authority, is_loopback, origin
from .intake import Log
from .prompts import Defaults
from .worker import Worker

_KEEP_ALIVE_S = 15  # between two requests of a connection; clients close theirs after 5 s or so
_GRACE_S = 3  # for connections to end after the answers were cancelled


@dataclass(frozen=True)
class Settings:
    """Where to listen and whom to answer. port 0: any that is free. queue: requests that may wait.

    names: what the server may be called beside its address: a proxy's name. strict: refuse unknown parameters.
    prefix_share: of the budget, most that goes to conversations that others take the place of. state_bytes: on disk.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = ""
    origins: tuple[str, ...] = ()
    queue: int = 32
    names: tuple[str, ...] = ()
    strict: bool = False
    prefix_share: float = 1 / 16
    state_bytes: int = 0

    @property
    def access(self) -> Access:
        return Access(self.host, self.api_key, self.origins, self.names)

    def check(self) -> None:
        """Raises UsageError."""
        if not is_loopback(self.host) and not self.api_key:
            raise UsageError(
                f"`--host {self.host}` lets other machines in, so it needs an API key",
                hint="set EDGEMOE_API_KEY or give `--api-key KEY`, or listen on 127.0.0.1",
            )
        if not 0 <= self.port <= 65535:
            raise UsageError(f"`--port {self.port}` is no port", hint="give 1 to 65535, or 0 for any that is free")
        if not 0 <= self.queue <= 10_000:
            raise UsageError(f"`--queue {self.queue}` makes no sense", hint="give 0 to 10000 requests that may wait")
        if not 0 <= self.prefix_share <= 0.5:
            raise UsageError(
                f"`--remember {self.prefix_share:.0%}` makes no sense", hint="give 0 to 50 per cent of the budget"
            )
        for text in self.origins:
            self._check_origin(text)
        for text in self.names:
            place = authority(text)
            if place is None or place.port is not None:
                raise UsageError(
                    f"`--allow-host {text}` is no name", hint="give a host's name alone, like `ai.example`"
                )

    def _check_origin(self, text: str) -> None:
        if text == ANYBODY:
            if not self.api_key:
                raise UsageError(
                    "`--cors-origin *` lets the pages of every site in, so it needs an API key",
                    hint="set EDGEMOE_API_KEY or give `--api-key KEY`, or name the sites",
                )
        elif origin(text, wild=True) is None:
            raise UsageError(
                f"`{text}` is no origin",
                hint="write it as `https://chat.example`, without a path; `http://localhost:*` is any port",
            )


def serve(
    models: Sequence[str],
    setup: Setup,
    settings: Settings,
    defaults: Defaults,
    *,
    talk: Talk,
    log: Log | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. setup: for every model. Raises what loading raises, UsageError, StorageError."""
    settings.check()
    with listening(settings) as listener:
        catalog = Catalog(models, setup, talk, prefix_share=settings.prefix_share, state_bytes=settings.state_bytes)
        catalog.engine(catalog.first)  # what cannot be loaded is known before anybody asks
        worker = Worker(catalog, settings.queue, setup.parallel)
        try:
            asyncio.run(_run(worker, settings, defaults, listener, talk, log))
        finally:
            worker.close()


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, bound before a model is loaded: a port in use should not cost a minute."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # IPPROTO_TCP in words: asyncio turns Nagle's algorithm off only where it reads that, and with it on an answer on a
    # kept connection waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        own_port(listener)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(128)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            where = f"{settings.host}:{settings.port}"
            raise StorageError(f"cannot listen on {where}: {reason.lower()}", hint="choose another `--port`") from None
        yield listener
    finally:
        listener.close()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again after it has stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run(
    worker: Worker, settings: Settings, defaults: Defaults, listener: socket.socket, talk: Talk, log: Log | None
) -> None:
    server = Server(worker, defaults, log, strict=settings.strict)
    config = uvicorn.Config(
        server.app(settings.access),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        ws="none",
        loop="asyncio",
        http=Connection,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    front = _Uvicorn(config)

    def stop() -> None:
        server.stopping.set()
        front.should_exit = True
        # In a thread: it waits for the layer that is being computed.
        asyncio.get_running_loop().run_in_executor(None, worker.close)

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    loop = asyncio.get_running_loop()
    with told_to_stop(lambda: loop.call_soon_threadsafe(stop)):
        talk(f"serving {', '.join(worker.catalog.entries)} at http://{shown}:{port} (Ctrl-C stops)")
        await front.serve(sockets=[listener])
