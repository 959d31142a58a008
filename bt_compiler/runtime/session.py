"""One running execution that many callers share: their examples meet in the backend's batches.

Threads may call it at once: one of them works for all, the others wait, and what is submitted meanwhile joins what is
under way. Knows nothing of HTTP or of how inputs are checked.
"""

from __future__ import annotations

import threading

from bt_compiler.data.example import Example
from bt_compiler.engine.executor import Execution
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import BtcError


class Session:
    """Submits examples and hands each caller its own trace.

    A backend that fails as a whole (`BtcError`) fails everything under way, each caller gets the error, and the session
    goes on with what comes next.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution  # touched by whoever has set `_working`, and by nobody else but to interrupt it
        self._changed = threading.Condition()
        self._working = False
        self._tickets = 0
        self._coming: dict[int, Example] = {}
        self._under_way: dict[int, int] = {}
        """Tickets by those of the execution."""
        self._waiting: set[int] = set()
        self._ended: dict[int, Trace | BtcError] = {}

    def submit(self, example: Example) -> int:
        """Takes one example, at once; the ticket is for `wait`, `take` or `forget`."""
        with self._changed:
            ticket = self._tickets
            self._tickets += 1
            self._coming[ticket] = example
            self._waiting.add(ticket)
            if self._working:
                self._execution.interrupt()
            return ticket

    def wait(self, ticket: int) -> Trace:
        """The trace of a ticket; works on everything submitted until it is there. Raises BtcError."""
        with self._changed:
            while ticket not in self._ended:
                if ticket not in self._waiting:
                    raise RuntimeError("the session was closed while an example was under way")
                self._work()
            result = self._ended.pop(ticket)
        if isinstance(result, BtcError):
            raise result
        return result

    def take(self) -> dict[int, Trace | BtcError]:
        """Works until something changes, and hands out all that has ended. For a server that is the only caller."""
        with self._changed:
            if self._waiting and not self._ended:
                self._work()
            ended, self._ended = self._ended, {}
            return ended

    def interrupt(self) -> None:
        """Makes the `take` under way, or else the next, return soon. From any thread."""
        self._execution.interrupt()

    def forget(self, ticket: int) -> None:
        """Nobody waits for this ticket any more; where it runs, it does so to its end unseen."""
        with self._changed:
            self._coming.pop(ticket, None)
            self._waiting.discard(ticket)
            self._ended.pop(ticket, None)

    def close(self) -> None:
        """Forgets all that is under way; whoever waits for it gets a RuntimeError."""
        with self._changed:
            self._forget_all()
            if self._working:
                self._execution.interrupt()
                self._changed.wait_for(lambda: not self._working)
            self._forget_all()  # what came meanwhile
            self._under_way.clear()
            self._execution.cancel()
            self._changed.notify_all()

    def _forget_all(self) -> None:
        self._coming.clear()
        self._waiting.clear()
        self._ended.clear()

    def _work(self) -> None:
        """One step, or until another thread has done one. The lock is held before and after, not meanwhile."""
        if self._working:
            self._changed.wait()
            return
        self._working = True
        coming, self._coming = self._coming, {}
        self._changed.release()
        ended: dict[int, Trace | BtcError] = {}
        try:
            ended = self._step(coming)
        finally:
            self._changed.acquire()
            self._working = False
            self._ended.update({ticket: result for ticket, result in ended.items() if ticket in self._waiting})
            self._waiting -= ended.keys()
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
