"""The values a diagnostic is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A text that spans point into: a spec file, one line of a data file, a `--set` argument."""

    name: str
    """What a reader sees before the line number: a path, or `--set #2`."""
    text: str
    """The text itself, or the part of it that starts at `first_line`."""
    first_line: int = 1
    """Number of the first line of `text` in the file; a data file keeps only the line in question."""
    parent: Source | None = None
    """The file that named this one with `extends`."""

    def line(self, number: int) -> str | None:
        """The text of line `number` (1-based) without its end, or None where the source does not hold it."""
        lines = self.text.splitlines()
        index = number - self.first_line
        return lines[index] if 0 <= index < len(lines) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a source. Lines and columns count from 1; the end column is exclusive."""

    source: Source
    line: int
    column: int = 1
    end_line: int
    end_column: int

    @classmethod
    def whole_line(cls, source: Source, line: int) -> Span:
        """The span of one full line, for files whose columns say nothing."""
        text = source.line(line) or ""
        return cls(source=source, line=line, column=1, end_line=line, end_column=len(text) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding: what is wrong in `message`, what to do only in `help`."""

    code: str
    """Stable code, `BTC` and three digits: 0xx YAML, 1xx schema, 2xx names, types and graph, 3xx data, 4xx optimising,
    5xx backend and runtime."""
    message: str
    """Lower case, identifiers in backticks, no full stop."""
    span: Span | None = None
    severity: Severity = "error"
    notes: tuple[str, ...] = ()
    help: str | None = None
    label: str | None = None
    """A few words that stand beside the carets of the excerpt."""

    @property
    def line(self) -> str:
        """In one line, for where others stand above and below; `render` shows the whole."""
        return f"{self.severity}[{self.code}]: {self.message}"
