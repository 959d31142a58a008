"""One running execution that many callers share: their examples meet in the backend's batches.

Threads may call it at once: one of them works for all, the others wait, and what is submitted meanwhile joins what is
under way. Knows nothing of HTTP or of how inputs are checked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from bt_compiler.data.example import Example
from bt_compiler.engine.executor import Execution
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import BackendError, BtcError


class Session:
    """Submits examples and hands each caller its own trace.

    A backend that fails as a whole (`BtcError`) fails everything under way, each caller gets the error, and the session
    goes on with what comes next. Any other exception inside a step (a bug, Ctrl-C, what a signal's handler raises) may
    have left rows, caches and book-keeping half done: whoever works gets it, the others BTC572, and the session is over
    for good. Whoever holds it opens the engine anew.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution  # touched by the `_worker` alone, but to interrupt it
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._worker: int | None = None
        """The thread that works for all."""
        self._over: str | None = None
        """Why nothing is taken any more."""
        self._tickets = 0
        self._coming: dict[int, Example] = {}
        self._under_way: dict[int, int] = {}
        """Tickets by those of the execution."""
        self._waiting: set[int] = set()
        self._ended: dict[int, Trace | BtcError] = {}

    @property
    def over(self) -> bool:
        """Whether it was closed or broken: nothing can be asked of it, nor of its engine."""
        return self._over is not None

    def gone(self) -> BackendError:
        """BTC572: why nothing comes of what was asked."""
        return BackendError.of(
            "BTC572",
            f"the prediction has no result: {self._over or 'it was forgotten'}",
            help="ask the predictor again: its next use opens the model anew",
        )

    def submit(self, example: Example) -> int:
        """Takes one example, at once; the ticket is for `wait`, `take` or `forget`. Raises BackendError BTC572."""
        with self._lock:
            if self._over is not None:
                raise self.gone()
            ticket = self._tickets
            self._tickets += 1
            self._coming[ticket] = example
            self._waiting.add(ticket)
            if self._worker is not None:
                self._execution.interrupt()
            return ticket

    def wait(self, ticket: int) -> Trace:
        """The trace of a ticket; works on everything submitted until it is there. Raises BtcError."""
        try:
            while self._work(lambda: ticket not in self._waiting):
                pass
        except BaseException:
            self.forget(ticket)
            raise
        with self._lock:
            result = self._ended.pop(ticket, None)
        if result is None:
            raise self.gone()
        if isinstance(result, BtcError):
            raise result
        return result

    def take(self) -> dict[int, Trace | BtcError]:
        """Works until something changes, and hands out all that has ended. For a server that is the only caller."""
        self._work(lambda: bool(self._ended) or not self._waiting)
        with self._lock:
            ended, self._ended = self._ended, {}
            return ended

    def interrupt(self) -> None:
        """Makes the `take` under way, or else the next, return soon. From any thread."""
        self._execution.interrupt()

    def forget(self, ticket: int) -> None:
        """Nobody waits for this ticket any more; where it runs, it does so to its end unseen."""
        with self._lock:
            self._coming.pop(ticket, None)
            self._waiting.discard(ticket)
            self._ended.pop(ticket, None)

    def close(self) -> None:
        """Forgets all that is under way; whoever waits for it gets BTC572, as does whoever submits more. Returns once
        nobody works any more, so that the engine can be closed.
        """
        with self._lock:
            self._mend()
            if self._over is None:
                self._end("its predictor was closed")
            if self._worker is not None:
                self._execution.interrupt()
                self._changed.wait_for(lambda: self._worker is None)

    def _work(self, done: Callable[[], bool]) -> bool:
        """One step, or until another thread has done one; False, and neither, where it is `done`."""
        try:
            with self._lock:
                self._mend()
                if done():
                    return False
                if self._worker is not None:
                    self._changed.wait()
                    return True
                self._worker = threading.get_ident()
                coming, self._coming = self._coming, {}
            ended = self._step(coming)
            with self._lock:
                self._ended.update({ticket: result for ticket, result in ended.items() if ticket in self._waiting})
                self._waiting -= ended.keys()
                self._worker = None
                self._changed.notify_all()
            return True
        except BaseException:
            with self._lock:
                self._mend()
                self._changed.notify_all()
            raise

    def _mend(self) -> None:
        """Ends the session where this thread has left a step halfway."""
        if self._worker == threading.get_ident():
            self._end("the call that worked for all was interrupted")
            self._worker = None

    def _end(self, why: str) -> None:
        self._over = why
        self._coming.clear()
        self._waiting.clear()
        self._ended.clear()
        self._changed.notify_all()

    def _step(self, coming: dict[int, Example]) -> dict[int, Trace | BtcError]:
        for ticket, example in coming.items():
            self._under_way[self._execution.submit(example)] = ticket
        try:
            done = self._execution.step()
        except BtcError as error:
            self._execution.cancel()
            failed: dict[int, Trace | BtcError] = dict.fromkeys(self._under_way.values(), error)
            self._under_way.clear()
            return failed
        return {self._under_way.pop(number): trace for number, trace in done if number in self._under_way}
