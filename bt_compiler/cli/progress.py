"""Progress on stderr: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from shutil import get_terminal_size

import click

_PLAIN_SECONDS = 15.0
"""Least time between two plain lines of one stretch of work."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"


class TerminalProgress:
    """Implements `engine.progress.Progress` for people."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, terminal: bool | None = None) -> None:
        self._clock = clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._label: str | None = None
        self._total: int | None = None
        self._done = 0
        self._note = ""
        self._started = 0.0
        self._shown = 0.0
        self._counted = 0.0

    def begin(self, label: str, total: int | None) -> None:
        """Start a stretch of work; ends any earlier one."""
        self.end()
        self._label, self._total, self._done, self._note = label, total, 0, ""
        self._started = self._shown = self._counted = self._clock()
        if self._terminal:
            self._draw()

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count work done and show it where that is due."""
        if self._label is None:
            return
        self._done += units
        self._counted = self._clock()
        self._tell(note)

    def spare(self, units: int, note: str) -> None:
        """So many units fewer are to be done, and shown, than were begun with."""
        if self._label is None:
            return
        self._total = None if self._total is None else self._total - units
        self._tell(note)

    def _tell(self, note: str) -> None:
        self._note = note or self._note
        due = 0.1 if self._terminal else _PLAIN_SECONDS
        if self._clock() - self._shown >= due:
            self._shown = self._clock()
            self._draw()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._wipe()
        click.echo(line, err=True)
        if self._terminal and self._label is not None:
            self._draw()

    def end(self) -> None:
        """Finish the current stretch: its bar goes, a line with its time stays where it took a while. What was done
        after its last unit, such as to open a model, is not of it.
        """
        if self._label is None:
            return
        self._wipe()
        whole = self._total is not None and self._done >= self._total
        took = (self._counted if whole else self._clock()) - self._started
        if took >= 1.0:
            click.echo(f"  {self._label}: {self._done} in {_clock(took)}", err=True)
        self._label = None

    def _wipe(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _draw(self) -> None:
        took = self._clock() - self._started
        parts = [f"  {self._label}"]
        if self._total:
            share = min(1.0, self._done / self._total)
            if self._terminal:
                filled = round(share * 24)
                parts.append("█" * filled + "░" * (24 - filled))
            parts.append(f"{self._done}/{self._total}")
            if self._done:
                parts.append(f"{_clock(took / self._done * max(0, self._total - self._done))} left")
        else:
            parts.append(f"{self._done}, {_clock(took)}")
        if self._note:
            parts.append(self._note)
        line = " ".join(parts)
        if self._terminal:
            width = max(20, get_terminal_size().columns)
            click.echo(f"\r\x1b[K{line[: width - 1]}", nl=False, err=True)
        else:
            click.echo(line, err=True)
