"""Diagnostics as text for people (design §8) and as JSON for tools."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import east_asian_width

from bt_compiler.diagnostics.diagnostic import Diagnostic, Span

MOST = 50
"""Findings that are shown of one phase: more say nothing new."""
_MAX_COLUMNS = 160
_COLORS = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m", "note": "\x1b[1;36m"}
_RESET = "\x1b[0m"


def _width(text: str) -> int:
    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _printable(text: str) -> str:
    """The line as a terminal may show it: tabs as four blanks, control characters as dots."""
    return "".join(char if char.isprintable() else "·" for char in text.replace("\t", "    "))


def _excerpt(span: Span, label: str | None) -> list[str]:
    line = span.source.line(span.line)
    if line is None:
        return []
    start = min(span.column - 1, len(line))
    end = span.end_column - 1 if span.end_line == span.line else len(line)
    end = max(start + 1, min(end, max(len(line), start + 1)))
    shift = max(0, start - _MAX_COLUMNS // 2) if len(line) > _MAX_COLUMNS else 0
    shown = line[shift : shift + _MAX_COLUMNS]
    before, marked = line[shift:start], line[start : min(end, shift + _MAX_COLUMNS)]
    number = str(span.line)
    pad = " " * len(number)
    carets = "^" * max(1, _width(_printable(marked)))
    return [
        f"{pad} |",
        f"{number} | {_printable(shown)}",
        f"{pad} | {' ' * _width(_printable(before))}{carets}{f' {label}' if label else ''}",
    ]


def _one(item: Diagnostic, *, color: bool) -> str:
    head = f"{item.severity}[{item.code}]"
    if color:
        head = f"{_COLORS[item.severity]}{head}{_RESET}"
    lines = [f"{head}: {item.message}"]
    pad = " "
    if item.span is not None:
        span = item.span
        pad = " " * len(str(span.line))
        lines.append(f"{pad}--> {span.source.name}:{span.line}:{span.column}")
        lines.extend(_excerpt(span, item.label))
        source = span.source
        while source.parent is not None:
            lines.append(f"{pad} = note: `{source.name}` is extended by `{source.parent.name}`")
            source = source.parent
    lines.extend(f"{pad} = note: {note}" for note in item.notes)
    if item.help is not None:
        lines.append(f"{pad} = help: {item.help}")
    return "\n".join(lines)


def render(diagnostics: Iterable[Diagnostic], *, color: bool = False) -> str:
    """All diagnostics as text, a blank line between two, in the given order; empty for none."""
    return "\n\n".join(_one(item, color=color) for item in diagnostics)


def foremost(diagnostics: Sequence[Diagnostic]) -> tuple[list[Diagnostic], int]:
    """Those that are shown, in their order, and how many are left out: where not all fit, the first errors stay."""
    if len(diagnostics) <= MOST:
        return list(diagnostics), 0
    errors = [item for item in diagnostics if item.severity == "error"]
    others = [item for item in diagnostics if item.severity != "error"]
    return [*errors, *others][:MOST], len(diagnostics) - MOST


def to_json(item: Diagnostic) -> dict[str, Any]:
    """One diagnostic as a JSON object: `code, severity, message, notes, help, label` and `span` or null."""
    span = item.span
    return {
        "code": item.code,
        "severity": item.severity,
        "message": item.message,
        "notes": list(item.notes),
        "help": item.help,
        "label": item.label,
        "span": None
        if span is None
        else {
            "source": span.source.name,
            "line": span.line,
            "column": span.column,
            "end_line": span.end_line,
            "end_column": span.end_column,
        },
    }
