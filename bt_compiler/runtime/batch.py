"""A stream of rows through a session, in order, with a bounded number of rows in memory."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.engine.trace import Failure, Trace
from bt_compiler.errors import UsageError
from bt_compiler.runtime.inputs import InputError, Problem, refuse_constant
from bt_compiler.runtime.outputs import finished
from bt_compiler.runtime.session import Session

_TABLES = (".csv", ".tsv", ".parquet", ".gz", ".zst")
"""Endings of files that data comes in, and that are not read here: each of their lines would be a broken row."""


class BrokenRow:
    """A line of a file that is no JSON; its place in the results is kept."""

    def __init__(self, message: str) -> None:
        self.message = message


def predict_batch(
    session: Session, example: Callable[[Any], Example], rows: Iterable[Any], *, window: int
) -> Iterator[dict[str, Any]]:
    """One result a row, in order; see `Predictor.batch`. `example` checks a row (InputError)."""
    if window < 1:
        raise ValueError("a window holds at least one row")
    pending: deque[int | InputError] = deque()
    source = iter(rows)
    try:
        more = True
        while more or pending:
            while more and len(pending) < window:
                row = next(source, _END)
                if row is _END:
                    more = False
                else:
                    pending.append(_submitted(session, example, row))
            if pending:
                first = pending.popleft()
                yield _wrong(first) if isinstance(first, InputError) else _result(session.wait(first))
    finally:
        for left in pending:
            if isinstance(left, int):
                session.forget(left)


def rows_of_file(path: Path) -> Iterator[Any]:
    """The JSON values of a JSONL file, blank lines left out; a broken line keeps its place as a failed row.

    `-` is standard input. Raises UsageError (BTC567) where the file is no JSONL by its name, or cannot be read.
    """
    if path.suffix in _TABLES:
        raise UsageError.of(
            "BTC567", f"`{path}` is no JSONL file", help="write its rows as one JSON object of the inputs a line"
        )
    return _rows(path)


def _rows(path: Path) -> Iterator[Any]:
    named = path != Path("-")
    try:
        with path.open("rb") if named else nullcontext(sys.stdin.buffer) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _row(line, f"{path if named else '<stdin>'}:{number}")
    except OSError as error:
        raise UsageError.of(
            "BTC567", f"cannot read `{path}`: {error.strerror}", help="name a JSONL file: one input object a line"
        ) from error


_END = object()


def _row(line: bytes, place: str) -> Any:
    try:
        return json.loads(line, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        return BrokenRow(f"{place} is not JSON: {error}")


def _submitted(session: Session, example: Callable[[Any], Example], row: Any) -> int | InputError:
    if isinstance(row, BrokenRow):
        return InputError([Problem(path=(), message=row.message, kind="json")])
    try:
        return session.submit(example(row))
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
