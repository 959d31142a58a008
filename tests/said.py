"""A progress that tests can ask what was said."""

from __future__ import annotations


class Said:
    """Remembers what it is told in words."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[str] = []

    def begin(self, label: str, total: int | None) -> None: ...

    def advance(self, units: int = 1, note: str = "") -> None:
        if note:
            self.notes.append(note)

    def spare(self, units: int, note: str) -> None:
        self.notes.append(note)

    def say(self, line: str) -> None:
        self.lines.append(line)
