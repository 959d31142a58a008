"""One running execution that many callers share: their examples meet in the backend's batches.

Threads may call it at once. Knows nothing of HTTP or of how inputs are checked.
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
        self._execution = execution
        self._lock = threading.RLock()
        self._waiting: set[int] = set()
        self._ended: dict[int, Trace | BtcError] = {}

    def submit(self, example: Example) -> int:
        """Takes one example; the ticket is for `wait`, `take` or `forget`."""
        with self._lock:
            ticket = self._execution.submit(example)
            self._waiting.add(ticket)
            return ticket

    def wait(self, ticket: int) -> Trace:
        """The trace of a ticket; works on everything submitted until it is there. Raises BtcError."""
        while True:
            with self._lock:
                if ticket in self._ended:
                    result = self._ended.pop(ticket)
                    break
                if ticket not in self._waiting:
                    raise RuntimeError("the session was closed while an example was under way")
                self._step()
        if isinstance(result, BtcError):
            raise result
        return result

    def take(self) -> dict[int, Trace | BtcError]:
        """Works until something changes, and hands out all that has ended. For a server that is the only caller."""
        with self._lock:
            if self._waiting and not self._ended:
                self._step()
            ended, self._ended = self._ended, {}
            return ended

    def forget(self, ticket: int) -> None:
        """Nobody waits for this ticket any more; it runs to its end unseen."""
        with self._lock:
            self._waiting.discard(ticket)
            self._ended.pop(ticket, None)

    def close(self) -> None:
        """Forgets all that is under way."""
        with self._lock:
            self._execution.cancel()
            self._waiting.clear()
            self._ended.clear()

    def _step(self) -> None:
        try:
            done = self._execution.step()
        except BtcError as error:
            self._execution.cancel()
            self._ended.update(dict.fromkeys(self._waiting, error))
            self._waiting.clear()
            return
        for ticket, trace in done:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._ended[ticket] = trace
