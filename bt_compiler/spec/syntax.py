"""What a YAML syntax error means to the person who wrote it. Knows the parser's words and the usual slips."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bt_compiler.diagnostics import Diagnostic, Source, Span
from bt_compiler.spec.foreign import foreign_help

_NEAR = 200
"""Characters on either side that are looked at: a slip is where it is, and lines may be very long."""


class _Slip(NamedTuple):
    code: str
    message: str
    help: str | None = None


class _Scene(NamedTuple):
    """What is at hand to tell slips apart."""

    problem: str
    """The parser's words, and the context's before them."""
    before: str
    """The line up to the place in question."""
    after: str
    """The line from there on."""


def explain_syntax(error: Any, source: Source) -> Diagnostic:
    """A `yaml.MarkedYAMLError` as a diagnostic: BTC010 in general, BTC011 tabs, BTC012 types of other languages."""
    if (conflict := re.search(r"^<{7} .*$", source.text, re.MULTILINE)) is not None:
        line = source.text.count("\n", 0, conflict.start()) + 1
        help = "keep one of the two sides, and delete the lines of `<`, `=` and `>`"
        span = Span.whole_line(source, line)
        return Diagnostic(code="BTC010", message="a merge conflict of git is left here", span=span, help=help)
    mark = error.problem_mark or error.context_mark
    opened = error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    text = source.line(line) or ""
    words = f"{error.context or ''}: {error.problem or ''}"
    scene = _Scene(words, text[max(0, column - 1 - _NEAR) : column - 1], text[column - 1 : column - 1 + _NEAR])
    slip = next((found for look in _LOOKS if (found := look(scene)) is not None), None)
    if slip is None:
        slip = _Slip("BTC010", f"not valid YAML: {error.problem or error}")
    notes: tuple[str, ...] = ()
    if (
        opened is not None
        and text
        and opened.line + 1 < line
        and ("flow" in scene.problem or "quoted" in scene.problem)
    ):
        notes = (f"it begins at line {opened.line + 1}, column {opened.column + 1}",)
    never_closed = slip.message.startswith("in a ") and scene.after[:1] == ":" and bool(notes)
    at_end = never_closed or "simple key" in words or line > len(source.text.splitlines()) or not text[column - 1 :]
    if at_end and opened is not None:  # show what was left open, not the end of the text
        line, column, notes = opened.line + 1, opened.column + 1, ()
    span = Span(source=source, line=line, column=column, end_line=line, end_column=column + 1)
    return Diagnostic(code=slip.code, message=slip.message, span=span, help=slip.help, notes=notes)


def _tab(scene: _Scene) -> _Slip | None:
    stray = scene.after[:1] == "\t" or (scene.before.strip() == "" and "\t" in scene.before)
    if not stray:
        return None
    return _Slip("BTC011", "a tab stands where YAML wants blanks", "indent with blanks, two a level")


def _foreign_type(scene: _Scene) -> _Slip | None:
    name = re.search(r"([^\W\d][\w.]*)$", scene.before)
    if scene.after[:1] != "[" or name is None:
        return None
    rest = re.match(r"\[[^\[\],{}]*(?:\[[^\[\],{}]*\])?[^\[\],{}]*\]", scene.after)
    written = name.group(1) + (rest.group() if rest else "[…]")
    help = foreign_help(written, exact=True) or "put the text in quotes"
    return _Slip("BTC012", f"`{written}` is not a type, and a bracket cannot stand there", help)


def _option_of_list(scene: _Scene) -> _Slip | None:
    found = re.search(r"(?:^|[:,{]\s*)(\[[^\]]*\]\s*\|)\s*$", scene.before + scene.after[:1])
    found = found or re.search(r"(\[[^\]]*\]\s*\|)\s*$", scene.before)
    if found is None or ("block scalar" not in scene.problem and scene.after[:1] != "|"):
        return None
    return _Slip("BTC010", "after `]` a value has ended", 'put the type in quotes: `"[str] | null"`')


def _colon(scene: _Scene) -> _Slip | None:
    if "mapping values are not allowed" not in scene.problem:
        return None
    if re.search(r"\S:\s+\S", scene.before):
        return _Slip("BTC010", "a text with a colon and a blank in it reads as a map", "put the text in quotes")
    return _Slip("BTC010", "a key stands where the value before goes on", "check the indentation of this line")


def _unquotable(scene: _Scene) -> _Slip | None:
    if "cannot start any token" not in scene.problem or not scene.after:
        return None
    return _Slip("BTC010", f"a value cannot start with `{scene.after[0]}`", "put the text in quotes")


def _open_quote(scene: _Scene) -> _Slip | None:
    if "quoted scalar" not in scene.problem:
        return None
    if "end of stream" in scene.problem or "document" in scene.problem:
        return _Slip(
            "BTC010", "a quote is opened and never closed", "close it; within a text in quotes, use the other kind"
        )
    if "escape" in scene.problem:
        return _Slip(
            "BTC010", "there is no such escape in a text in double quotes", "in single quotes a backslash is itself"
        )
    return None


def _open_bracket(scene: _Scene) -> _Slip | None:
    kind = "list" if "flow sequence" in scene.problem else "map" if "flow mapping" in scene.problem else None
    if kind is None:
        return None
    closing = "`]`" if kind == "list" else "`}`"
    return _Slip("BTC010", f"in a {kind} in brackets a comma or {closing} is missing", None)


def _indentation(scene: _Scene) -> _Slip | None:
    if "block mapping" in scene.problem and scene.before.strip() == "":
        return _Slip("BTC010", "this line fits no level of the map around it", "check its indentation")
    if "block mapping" in scene.problem:
        return _Slip(
            "BTC010", "after the value before, nothing can follow on this line", "put the whole text in quotes"
        )
    if "block collection" in scene.problem or "block sequence" in scene.problem:
        return _Slip("BTC010", "a list goes on with `-`, a map cannot follow it here", "check the indentation")
    return None


def _no_colon(scene: _Scene) -> _Slip | None:
    if "could not find expected ':'" not in scene.problem:
        return None
    return _Slip("BTC010", "this is no `key: value`", "put a colon and a blank after the key")


def _ended(scene: _Scene) -> _Slip | None:
    if "expected <document start>" not in scene.problem:
        return None
    return _Slip("BTC010", "the value has ended, and nothing can follow it", "put the whole text in quotes")


_LOOKS: tuple[Callable[[_Scene], _Slip | None], ...] = (
    _tab,
    _foreign_type,
    _option_of_list,
    _open_quote,
    _colon,
    _unquotable,
    _open_bracket,
    _no_colon,
    _indentation,
    _ended,
)
