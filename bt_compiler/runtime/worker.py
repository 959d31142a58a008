"""Runs a predictor in one thread for many concurrent requests, whose examples meet in the backend's batches.

Knows futures and threads, not HTTP. The thread is a named boundary: a bug there fails what is under way, with its
traceback on stderr, and the worker goes on with the model opened anew.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple

from bt_compiler.data.example import Example
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import BtcError
from bt_compiler.runtime.predictor import Predictor
from bt_compiler.runtime.session import Session

Result = Trace | BtcError | Exception


class Busy(Exception):
    """The worker takes nothing now: its queue is full, the model is not loaded, or it is closing."""


class _Job(NamedTuple):
    example: Example
    future: asyncio.Future[Trace]
    loop: asyncio.AbstractEventLoop


class Worker:
    """One predictor, one thread, a bounded number of requests under way."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        limit: int,
        on_failure: Callable[[Exception], None] | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """`limit`: requests waiting or running; `on_failure` is told why the model cannot be opened, `on_ready` that
        requests are taken.
        """
        self.predictor = predictor
        self._limit = limit
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._session: Session | None = None
        self.under_way = 0
        """Requests waiting or running."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"predict {predictor.bundle.manifest.name}")

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and requests are taken."""
        return self._session is not None

    def start(self) -> None:
        """Starts loading the model; returns at once."""
        self._thread.start()

    async def predict(self, example: Example) -> Trace:
        """The trace of one example. Raises Busy, BtcError (the backend failed), or whatever bug there is."""
        session = self._session
        if session is None or self._closing:
            raise Busy("the server is shutting down" if self._closing else "the model is not loaded yet")
        if self.under_way >= self._limit:
            raise Busy(f"{self._limit} requests are under way, which is all this server takes")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Trace] = loop.create_future()
        self.under_way += 1
        future.add_done_callback(self._ended)
        self._jobs.put(_Job(example, future, loop))
        session.interrupt()  # it joins what is under way
        return await future

    def close(self) -> None:
        """Finishes what somebody waits for, closes the predictor and returns when the thread has ended."""
        self._closing = True
        if self._thread.ident is not None:
            self._jobs.put(None)
            session = self._session
            if session is not None:
                session.interrupt()
            self._thread.join()
        self.predictor.close()

    def _ended(self, _: asyncio.Future[Trace]) -> None:
        self.under_way -= 1

    def _run(self) -> None:
        running: dict[int, _Job] = {}
        closing = False
        session = self._opened()
        while session is not None:
            closing = self._take_jobs(session, running, wait=not (running or closing)) or closing
            if closing and all(job.future.done() for job in running.values()):
                return
            for ticket, result in self._work(session, running).items():
                _deliver(running.pop(ticket), result)
            if session.over:
                self._session = None
                while running:
                    _deliver(running.popitem()[1], session.gone())
                session = None if self._closing else self._opened()
        self._refuse(Busy("the server is shutting down"))

    def _opened(self) -> Session | None:
        """The session, with the model open: requests are taken. None where it cannot be opened, and those that wait are
        told, as is `on_failure`.
        """
        try:
            session = self.predictor.open()
        except Exception as error:
            self._refuse(error)
            if self._on_failure is None:
                raise
            self._on_failure(error)
            return None
        if self._on_ready is not None:
            self._on_ready()  # first, so that whoever was told by `/readyz` finds it in the log
        self._session = session
        return session

    def _refuse(self, error: Exception) -> None:
        """Tells it to all that wait to be taken."""
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                _deliver(job, error)

    def _take_jobs(self, session: Session, running: dict[int, _Job], *, wait: bool) -> bool:
        """Submits all that has come; with `wait` there will be something. True where the end has been asked for."""
        while True:
            try:
                job = self._jobs.get(block=wait)
            except queue.Empty:
                return False
            if job is None:
                return True
            try:
                running[session.submit(job.example)] = job
            except BtcError as error:  # the predictor was closed by somebody else: it is opened anew
                _deliver(job, error)
                return False
            wait = False

    def _work(self, session: Session, running: dict[int, _Job]) -> dict[int, Result]:
        try:
            return {ticket: result for ticket, result in session.take().items() if ticket in running}
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return dict.fromkeys(running, error)


def _deliver(job: _Job, result: Result) -> None:
    job.loop.call_soon_threadsafe(_settle, job.future, result)


def _settle(future: asyncio.Future[Trace], result: Result) -> None:
    """In the event loop's thread; a client that has gone has cancelled its future."""
    if future.done():
        return
    if isinstance(result, Trace):
        future.set_result(result)
    else:
        future.set_exception(result)
