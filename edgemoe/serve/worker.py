"""The threads that use the engine, one for each answer that is computed at once, and the bounded queue before them.

Jobs begin in the order in which they came, each on a seat of its own; without `--parallel` there is one, and they run
one after another. A job for another model waits until all that run have ended. What a job yields goes to the event loop
that asked; a job whose client has gone is taken out of the queue, or ended within a layer's time, or a token's where
others are computed with it, when it is running. No lock is held while something is computed or sent.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from ..errors import Cancelled, EdgeMoEError, UsageError
from ..runtime.engine.engine import Engine
from .catalog import Catalog
from .failures import ApiError, of_engine

Event = Any
Work = Callable[[Engine], Iterator[Event]]
"""Runs in the worker's thread; what it yields is handed to the client."""

_END = object()
_RETRY_AFTER_S = 5
_MAX_UNREAD, _UNREAD_S = 2048, 0.01  # events that wait for a slow client, and how often to look


class Job:
    """Work for one model, and the way back to who asked for it."""

    def __init__(self, model: str, work: Work) -> None:
        """Made on the event loop that will read `Worker.events`."""
        self.model = model
        self.work = work
        self.cancelled = False
        self.engine: Engine | None = None  # its seat, as long as it runs
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Any thread. Waits while a client reads far more slowly than is computed; see `connections`."""
        while self._events.qsize() > _MAX_UNREAD and not self.cancelled:
            time.sleep(_UNREAD_S)
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: the server is going down
            self.cancelled = True

    async def get(self) -> Event:
        return await self._events.get()


class Worker:
    """max_waiting: jobs that may wait beside those that run. parallel: jobs that may run, where the model allows it."""

    def __init__(self, catalog: Catalog, max_waiting: int, parallel: int = 1) -> None:
        self.catalog = catalog
        self.max_waiting = max_waiting
        self.n_refused = 0
        self._waiting: deque[Job] = deque()
        self._active: dict[int, Job] = {}  # by seat
        self._closing = False
        self._change = threading.Condition()  # guards the three above
        self._threads = [
            threading.Thread(target=self._run, name=f"edgemoe-engine-{i}", daemon=True) for i in range(parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> frozenset[int]:
        """The seats on which jobs run."""
        return frozenset(self._active.copy())

    @property
    def n_seat(self) -> int:
        """Jobs that may run at once with the model that is loaded."""
        loaded = self.catalog.current
        return len(loaded[1].seats) if loaded else 1

    def progress(self, job: Job) -> tuple[int, int] | None:
        """Tokens of a job's prompt that are computed, and those that were there already; None while it waits."""
        engine = job.engine
        if engine is None:
            return None
        try:
            return engine.progress
        except UsageError:  # it was closed in the meantime
            return None

    def submit(self, job: Job) -> None:
        """Raises ApiError 429 when the queue is full, 503 when the server is going down."""
        with self._change:
            if self._closing:
                raise ApiError(503, "the server is going down", code="shutting_down")
            if len(self._waiting) >= self.max_waiting + max(0, self.n_seat - len(self._active)):
                self.n_refused += 1
                raise ApiError(
                    429,
                    f"{len(self._waiting)} requests are waiting already, more than that are not queued",
                    code="queue_full",
                    headers={"Retry-After": str(_RETRY_AFTER_S)},
                )
            self._waiting.append(job)
            self._change.notify_all()

    def cancel(self, job: Job) -> None:
        """Who asked has gone."""
        with self._change:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            elif job.engine:
                # Under the lock, so that it cannot hit the next job.
                job.engine.cancel()

    async def events(self, job: Job) -> AsyncGenerator[Event, None]:
        """Submit a job and give what it yields. Leaving the loop, or being cancelled in it, cancels the job.

        Raises ApiError.
        """
        self.submit(job)
        ended = False
        try:
            while True:
                event = await job.get()
                if event is _END:
                    ended = True
                    return
                if isinstance(event, ApiError):
                    raise event
                yield event
        finally:
            if not ended:
                self.cancel(job)

    def close(self, timeout_s: float = 30) -> None:
        """End what runs and what waits, and unload the model."""
        with self._change:
            self._closing = True
            for job in self._waiting:
                job.put(ApiError(503, "the server is going down", code="shutting_down"))
            self._waiting.clear()
            active = list(self._active.values())
            self._change.notify_all()
        for job in active:
            self.cancel(job)
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    # ---------------------------------------------------------------- the worker's threads

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._closing and (seat := self._seat()) is None:
                    self._change.wait()
                if self._closing:
                    break
                assert seat is not None
                job = self._waiting.popleft()
                self._active[seat] = job
            try:
                self._do(job, seat)
            finally:
                with self._change:
                    job.engine = None
                    del self._active[seat]
                    self._change.notify_all()
                job.put(_END)
        if threading.current_thread() is self._threads[-1]:
            for thread in self._threads[:-1]:
                thread.join()
            self.catalog.close()

    def _seat(self) -> int | None:
        """Where the next job may run now: nowhere while another model's run, or its own is being loaded."""
        if not self._waiting:
            return None
        if not self._active:
            return 0
        loaded = self.catalog.current
        if loaded is None or loaded[0] != self._waiting[0].model:
            return None
        return next((seat for seat in range(len(loaded[1].seats)) if seat not in self._active), None)

    def _do(self, job: Job, seat: int) -> None:
        try:
            engine = self.catalog.engine(job.model).seats[seat]
            with self._change:
                job.engine, gone = engine, job.cancelled
                self._change.notify_all()  # the model is loaded: others may run with it
            if gone:
                return
            for event in job.work(engine):
                if job.cancelled:
                    return
                job.put(event)
        except Cancelled as error:
            if not job.cancelled:
                job.put(of_engine(error))
        except ApiError as error:
            job.put(error)
        except Exception as error:
            if not isinstance(error, EdgeMoEError):
                print(f"edgemoe: a request failed at {time.strftime('%H:%M:%S')}:", file=sys.stderr)
                traceback.print_exc()
            job.put(of_engine(error))
