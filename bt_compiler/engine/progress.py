"""How long work tells what it does; the command line decides how that looks."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress. Calls are cheap and may come often; nothing depends on what is done with them."""

    def begin(self, label: str, total: int | None) -> None:
        """A stretch of work of `total` units (None: unknown) starts; it ends any earlier one."""
        ...

    def advance(self, units: int = 1, note: str = "") -> None:
        """`units` of the current stretch are done; `note` is shown beside them (a loss, a score)."""
        ...

    def spare(self, units: int, note: str) -> None:
        """`units` of the current stretch need not be done, as `note` says."""
        ...

    def say(self, line: str) -> None:
        """One line for people, kept."""
        ...


class Silent:
    """Tells nobody."""

    def begin(self, label: str, total: int | None) -> None: ...

    def advance(self, units: int = 1, note: str = "") -> None: ...

    def spare(self, units: int, note: str) -> None: ...

    def say(self, line: str) -> None: ...
