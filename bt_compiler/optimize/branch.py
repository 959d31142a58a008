"""One branch of a sweep's journal: what a strategy's prefix keeps for itself, and what it shares with all others.

Memos (measured choices) are shared. Folders and memos of steps belong to one seed and one prefix, so that Π→Θ and Θ→Θ,
whose second step is a weights step in both, never meet. Completions are shared too, but for engines whose rows depend
on their batch: there a run has to find what it found the first time, whatever other branches have asked since, so that
a branch sees its own completions and those of the prefixes it grew from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bt_compiler.engine.cache import CompletionStore
from bt_compiler.engine.request import Completion
from bt_compiler.optimize.journal import Journal


class Branch:
    """A `StepJournal` for the prefix `steps` at `seed`. `apart`: completions of other branches are not seen."""

    def __init__(self, journal: Journal, *, seed: int, steps: Sequence[str], apart: bool = False) -> None:
        self._journal = journal
        self._names = tuple("-".join((f"seed-{seed}", *steps[:length])) for length in range(len(steps) + 1))
        self._completions: CompletionStore = journal.completions
        if apart:
            self._completions = _OwnCompletions(journal.completions, self._names)

    @property
    def completions(self) -> CompletionStore:
        """All, or those of this branch alone."""
        return self._completions

    def memo(self, name: str, make: Callable[[], Any], *, keep: Callable[[Any], bool] = lambda value: True) -> Any:
        """Shared by all branches."""
        return self._journal.memo(name, make, keep=keep)

    def step_memo(self, index: int, name: str, make: Callable[[], Any]) -> Any:
        """As `memo`, of step `index` (from 1) of this branch."""
        return self._journal.memo(f"{name} of step {index} of {self._names[index]}", make)

    def step_folder(self, index: int) -> Path:
        """The folder of step `index` (from 1) of this branch; created where missing."""
        return self._journal.kept_folder("branches", self._names[index])


class _OwnCompletions:
    """Completions under the name of a branch; those of the branches it grew from are read, never written."""

    def __init__(self, store: CompletionStore, names: tuple[str, ...]) -> None:
        self._store = store
        self._names = names

    def get(self, key: str) -> Completion | None:
        """From this branch or one it grew from, the nearest first."""
        for name in reversed(self._names):
            found = self._store.get(f"{name}:{key}")
            if found is not None:
                return found
        return None

    def put(self, key: str, completion: Completion) -> None:
        """Into this branch."""
        self._store.put(f"{self._names[-1]}:{key}", completion)

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Into this branch."""
        self._store.put_many([(f"{self._names[-1]}:{key}", completion) for key, completion in items])
