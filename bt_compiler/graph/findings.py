"""Collecting every finding of the graph phase before anything is raised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bt_compiler.diagnostics import Diagnostic
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

    def add(
        self,
        code: str,
        message: str,
        path: SpecPath,
        *,
        key: bool = False,
        help: str | None = None,
        notes: Sequence[str] = (),
        label: str | None = None,
        severity: Severity = "error",
    ) -> None:
        """Adds one, at the value of `path` or at its key; a second one of the same code and place is dropped."""
        item = Diagnostic(
            code=code,
            message=message,
            span=self.spec.span(path, key=key),
            severity=severity,
            notes=tuple(notes),
            help=help,
            label=label,
        )
        if item not in self.items:
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
