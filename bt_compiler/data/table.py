"""Rows of one source before anything is made of them: values by column, with the line they came from.

Knows nothing of fields or types.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bt_compiler.diagnostics import Diagnostic, Source, Span

SHOWN = 10
"""Diagnostics of one kind and file that are shown; the rest is counted."""
_LONGEST_LINE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row."""

    line: int
    """Line of the source it starts on, from 1."""
    text: str
    """That line, for diagnostics."""
    values: Mapping[str, Any]
    """Column -> text (CSV) or JSON value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All rows of one source."""

    name: str
    """What a reader sees before the line number."""
    rows: tuple[Row, ...]
    header: str | None = None
    """The line that names the columns, where there is one."""
    header_line: int = 1
    columns: tuple[str, ...] = ()
    """Every column that some row has, in order of appearance."""
    whole: bool = True
    """Whether `columns` are all of the source's; rows of JSONL beyond `limit` are not read and may have others."""

    def span(self, row: Row) -> Span:
        """The line of a row."""
        return line_span(self.name, row.line, row.text)

    def top(self) -> Span:
        """The header line; without one the first row."""
        if self.header is not None:
            return line_span(self.name, self.header_line, self.header)
        return self.span(self.rows[0])


def line_span(name: str, line: int, text: str) -> Span:
    """One line of a data file as a span."""
    source = Source(name=name, text=text[:_LONGEST_LINE], first_line=line)
    return Span.whole_line(source, line)


def shown_name(path: Path) -> str:
    """The path as a reader of this folder writes it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        relative = os.path.relpath(path)
        return relative if len(relative) < len(str(path)) else str(path)


def cut_short(found: Sequence[Diagnostic], what: str) -> list[Diagnostic]:
    """The first of many diagnostics of one file; the last one says how many more there are."""
    if len(found) <= SHOWN:
        return list(found)
    last = found[SHOWN - 1]
    more = Diagnostic(
        code=last.code,
        message=last.message,
        span=last.span,
        severity=last.severity,
        notes=(*last.notes, f"{len(found) - SHOWN} more {what} are not shown"),
        help=last.help,
    )
    return [*found[: SHOWN - 1], more]
