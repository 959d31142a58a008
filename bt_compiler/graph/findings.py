"""Collecting every finding of the graph phase before anything is raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bt_compiler.diagnostics import MOST, Diagnostic
from bt_compiler.diagnostics.diagnostic import Severity
from bt_compiler.errors import SpecError
from bt_compiler.spec import Spec

SpecPath = tuple[str | int, ...]
"""Keys and indices from the top of the document to a value."""


@dataclass(slots=True)
class Findings:
    """Diagnostics in the order they were found."""

    spec: Spec
    items: list[Diagnostic] = field(default_factory=list)
    known: set[Diagnostic] = field(default_factory=set)
    """Those that were added."""

    def add(
        self,
        code: str,
        message: str,
        path: SpecPath,
        *,
        key: bool = False,
        help: str | Callable[[], str] | None = None,
        notes: Sequence[str] = (),
        label: str | None = None,
        severity: Severity = "error",
    ) -> None:
        """Adds one, at the value of `path` or at its key; the same a second time is dropped.

        Help that takes time to find is a function: it is not called once there are more findings than are shown.
        """
        if callable(help):
            help = help() if len(self.items) < MOST else None
        item = Diagnostic(
            code=code,
            message=message,
            span=self.spec.span(path, key=key),
            severity=severity,
            notes=tuple(notes),
            help=help,
            label=label,
        )
        if item not in self.known:
            self.known.add(item)
            self.items.append(item)

    @property
    def failed(self) -> bool:
        """Whether there is an error among them."""
        return any(item.severity == "error" for item in self.items)

    def raise_errors(self) -> None:
        """Raises SpecError with everything found, by place, where there is an error."""
        if self.failed:
            raise SpecError(self.sorted())

    def sorted(self) -> list[Diagnostic]:
        """By file, line and column."""
        return sorted(self.items, key=_place)


def _place(item: Diagnostic) -> tuple[str, int, int]:
    return (item.span.source.name, item.span.line, item.span.column) if item.span else ("", 0, 0)
