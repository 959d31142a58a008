"""A stream of rows through a session, in order, with a bounded number of rows in memory."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bt_compiler.canonical import unrepeated
from bt_compiler.data.example import Example
from bt_compiler.engine.trace import Failure, Trace
from bt_compiler.errors import UsageError
from bt_compiler.runtime.inputs import InputError, Problem, refuse_constant
from bt_compiler.runtime.outputs import finished
from bt_compiler.runtime.session import Session

_TABLES = (".csv", ".tsv", ".parquet", ".gz", ".zst")
"""Endings of files that data comes in, and that are not read here: each of their lines would be a broken row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """A row of a file; its result says of which line it is."""

    line: int
    """From 1, blank ones counted."""
    value: Any = None
    broken: str | None = None
    """Why there is no value: the line is no JSON."""


def predict_batch(
    session: Session, example: Callable[[Any], Example], rows: Iterable[Any], *, window: int
) -> Iterator[dict[str, Any]]:
    """One result a row, in order; see `Predictor.batch`. `example` checks a row (InputError). That of a `FileRow` has
    its `line` in front.
    """
    if window < 1:
        raise ValueError("a window holds at least one row")
    pending: deque[tuple[int | InputError, dict[str, Any]]] = deque()
    source = iter(rows)
    try:
        more = True
        while more or pending:
            while more and len(pending) < window:
                row = next(source, _END)
                if row is _END:
                    more = False
                else:
                    place = {"line": row.line} if isinstance(row, FileRow) else {}
                    pending.append((_submitted(session, example, row), place))
            if pending:
                first, place = pending.popleft()
                yield place | (_wrong(first) if isinstance(first, InputError) else _result(session.wait(first)))
    finally:
        for left, _ in pending:
            if isinstance(left, int):
                session.forget(left)


def rows_of_file(path: Path) -> Iterator[FileRow]:
    """The JSON values of a JSONL file, blank lines left out; a broken line keeps its place as a failed row.

    `-` is standard input. Raises UsageError (BTC567) where the file is no JSONL by its name, or cannot be read.
    """
    if path.suffix in _TABLES:
        raise UsageError.of(
            "BTC567", f"`{path}` is no JSONL file", help="write its rows as one JSON object of the inputs a line"
        )
    return _rows(path)


def _rows(path: Path) -> Iterator[FileRow]:
    named = path != Path("-")
    try:
        with path.open("rb") if named else nullcontext(sys.stdin.buffer) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, number, path if named else "<stdin>")
    except OSError as error:
        raise UsageError.of(
            "BTC567", f"cannot read `{path}`: {error.strerror}", help="name a JSONL file: one input object a line"
        ) from error


_END = object()


def _row(line: bytes, number: int, path: Path | str) -> FileRow:
    try:
        value = json.loads(line, parse_constant=refuse_constant, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        return FileRow(line=number, broken=f"{path}:{number} is not JSON: {error}")
    return FileRow(line=number, value=value)


def _submitted(session: Session, example: Callable[[Any], Example], row: Any) -> int | InputError:
    value = row.value if isinstance(row, FileRow) else row
    if isinstance(row, FileRow) and row.broken is not None:
        return InputError([Problem(path=(), message=row.broken, kind="json")])
    try:
        return session.submit(example(value))
    except InputError as error:
        return error


def _result(trace: Trace) -> dict[str, Any]:
    found = finished(trace)
    if isinstance(found, Failure):
        return {"error": {"code": found.code, "message": found.message, "node": found.node}}
    return {"outputs": found}


def _wrong(error: InputError) -> dict[str, Any]:
    message = "; ".join(problem.message for problem in error.problems)
    return {"error": {"code": "BTC562", "message": message, "node": None}}
