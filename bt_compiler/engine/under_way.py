"""What an execution keeps of the examples it moves along: who they are, where they stand, what they wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bt_compiler.engine.running import Running, Setting
from bt_compiler.graph.candidate import Candidate


class Live(NamedTuple):
    """An example under way."""

    example: str
    repeat: int
    candidate: Candidate
    setting: Setting


@dataclass(slots=True)
class Task:
    """A generator that runs: of an example as a whole, or of one branch of a fork in it."""

    ticket: int
    running: Running
    parent: int | None = None
    """The task whose fork this is a branch of; None: the example itself."""
    place: int = 0
    """Which branch."""
    ended: list[Any] = field(default_factory=list)
    """Of a task that waits for its branches: what each gave so far."""
    open: int = 0
    """Branches that have not ended."""


class Flight(NamedTuple):
    """A request at a backend and the tasks that wait for it."""

    backend: str
    key: str
    tasks: list[int]
