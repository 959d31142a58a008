"""A completion store for engines whose rows depend on their batch: a run counts as a whole or not at all.

Where a row's bytes follow from its neighbours, a run that finds half of its completions in a journal would batch the
other half differently and end differently. So completions of a run are kept back until it has ended and are then
written in one transaction; a run that was interrupted is repeated from its start, against the same journal that it
first saw. A cache shared with other compiles cannot take part, for what it holds is not the same twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from bt_compiler.engine.cache import CompletionStore
from bt_compiler.engine.request import Completion


class WholeRuns:
    """A `CompletionStore` in front of the journal's; `commit` after every run of the engine."""

    def __init__(self, journal: CompletionStore) -> None:
        self._journal = journal
        self._current: dict[str, Completion] = {}

    def get(self, key: str) -> Completion | None:
        """From the current run or those before it."""
        return self._current.get(key) or self._journal.get(key)

    def put(self, key: str, completion: Completion) -> None:
        """Kept in memory until the run has ended."""
        self._current[key] = completion

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Several puts."""
        self._current.update(items)

    def commit(self) -> None:
        """The run has ended: all of it is written, in one transaction."""
        if self._current:
            self._journal.put_many(tuple(self._current.items()))
            self._current.clear()
