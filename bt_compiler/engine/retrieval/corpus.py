"""Reads a corpus: rows of a JSONL or CSV file become passages with an id, a title and a rendered text.

Streams: memory holds one row and the ids seen. Knows files and templates, nothing of indexes.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from bt_compiler.data.packed import data_lines, format_suffix
from bt_compiler.data.selecting import fits
from bt_compiler.data.table import line_span, shown_name
from bt_compiler.diagnostics import Diagnostic, Span, did_you_mean
from bt_compiler.errors import DataError, SpecError
from bt_compiler.spec.sections import CorpusSection

_MOST_FINDINGS = 10
"""Findings in one file before reading stops."""


class Text(NamedTuple):
    """A passage before it is scored."""

    id: str
    title: str
    text: str


class Row(NamedTuple):
    """One record of the file, and where it stands."""

    line: int
    """Number of its first line, from 1."""
    values: Mapping[str, Any]
    raw: str
    """That line, for error messages."""


class _BadRow(Exception):
    def __init__(self, finding: Diagnostic, *, last: bool = False) -> None:
        self.finding = finding
        self.last = last  # every further row would say the same
        super().__init__(finding.message)


def check_corpus(section: CorpusSection) -> None:
    """The template and the first row. Raises SpecError BTC378, DataError BTC373 to BTC377."""
    for _ in islice(read_corpus(section), 1):
        return


def read_corpus(section: CorpusSection) -> Iterator[Text]:
    """Every passage, in order.

    Raises SpecError BTC378 (template), DataError with up to ten findings: BTC373 (file), BTC374 (a row that cannot be
    read), BTC375 (no such column), BTC376 (id missing or used twice), BTC377 (no rows).
    """
    columns = template_columns(section)
    path = Path(section.path)
    findings: list[Diagnostic] = []
    first_line: dict[str, int] = {}
    known: dict[str, None] = {}
    count = taken = 0
    for item in _rows(section, path):
        count += 1
        try:
            if isinstance(item, Diagnostic):
                raise _BadRow(item)
            if section.where:
                known |= dict.fromkeys(item.values)
                if not all(fits(condition, item.values) for condition in section.where):
                    continue
            taken += 1
            text = _passage(section, path, item, columns, count)
            _unique(path, item, text.id, first_line)
        except _BadRow as bad:
            findings.append(bad.finding)
            if len(findings) == _MOST_FINDINGS or bad.last:
                break
            continue
        if not findings:
            yield text
    if findings:
        raise DataError(findings)
    if taken == 0:
        raise _nothing_taken(section, path, count, list(known))


def _nothing_taken(section: CorpusSection, path: Path, rows: int, columns: list[str]) -> DataError:
    name = shown_name(path)
    absent = [condition.column for condition in section.where if condition.column not in columns]
    if rows == 0:
        return DataError.of("BTC377", f"corpus `{name}` has no rows", span=section.span)
    if absent:
        help = did_you_mean(absent[0], columns, what="its columns")
        message = f"`where` filters corpus `{name}` by `{absent[0]}`, a column that it does not have"
        return DataError.of("BTC375", message, span=section.span, help=help)
    return DataError.of("BTC377", f"no passage of corpus `{name}` fits `where`", span=section.span)


def template_columns(section: CorpusSection) -> tuple[str, ...]:
    """The columns that the text template names. Raises SpecError BTC378."""
    try:
        parts = [part for part in Formatter().parse(section.text) if part[1] is not None]
    except ValueError as error:
        raise _template_error(section, str(error)) from error
    for _, name, form, conversion in parts:
        if not name or form or conversion or set(name) & set(".["):
            raise _template_error(section, f"`{{{name}}}` is not the name of a column")
    if not parts:
        raise _template_error(section, "it names no column, so every passage would be the same")
    return tuple(dict.fromkeys(name for _, name, _, _ in parts if name))


def _template_error(section: CorpusSection, reason: str) -> SpecError:
    return SpecError.of(
        "BTC378",
        f"the corpus' `text` template `{section.text}` cannot be read: {reason}",
        span=section.span,
        help="write columns in braces, as in `{title} | {text}`, and a literal brace twice",
    )


def _rows(section: CorpusSection, path: Path) -> Iterator[Row | Diagnostic]:
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv}
    reader = readers.get(format_suffix(path))
    if reader is None:
        raise DataError.of(
            "BTC373",
            f"corpus `{shown_name(path)}` is of no known format",
            span=section.span,
            help="name a `.jsonl` or `.csv` file, or one of them as `.gz` or `.zst`",
        )
    try:
        yield from reader(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError.of(
            "BTC373", f"corpus `{shown_name(path)}` cannot be read: {reason}", span=section.span
        ) from error


def _jsonl(path: Path) -> Iterator[Row | Diagnostic]:
    for number, raw in enumerate(data_lines(path), 1):
        data = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not data.strip():
            continue
        try:
            line = data.decode("utf-8")
            values = json.loads(line)
        except UnicodeDecodeError as error:
            yield _finding(path, number, data.decode("utf-8", "replace"), "not UTF-8 text", error.start + 1)
            continue
        except json.JSONDecodeError as error:
            yield _finding(path, number, line, f"broken JSON: {error.msg.lower()}", error.colno)
            continue
        except (RecursionError, ValueError) as error:  # nested too deeply, an integer of too many digits
            yield _finding(path, number, line, f"JSON that cannot be read: {error}")
            continue
        if isinstance(values, dict):
            yield Row(number, values, line.rstrip("\r\n"))
        else:
            yield _finding(path, number, line, "a row has to be a JSON object, `{…}`")


def _csv(path: Path) -> Iterator[Row | Diagnostic]:
    number = 0
    with closing(data_lines(path)) as lines:
        reader = csv.reader(codecs.iterdecode(lines, "utf-8-sig"), strict=True)
        try:
            header = next(reader, [])
            number = reader.line_num
            if len(set(header)) != len(header):
                twice = next(cell for cell in header if header.count(cell) > 1)
                yield _finding(path, number, ",".join(header), f"the header names column `{twice}` twice")
                return
            for cells in reader:
                number, start = reader.line_num, number + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    message = f"{len(cells)} cells where the header has {len(header)} columns"
                    yield _finding(path, start, ",".join(cells), message)
                else:
                    yield Row(start, dict(zip(header, cells, strict=True)), ",".join(cells))
        except csv.Error as error:
            yield _finding(path, number + 1, "", f"broken CSV: {error}")
        except UnicodeDecodeError:
            yield _finding(path, number + 1, "", "not UTF-8 text")


def _finding(path: Path, line: int, raw: str, message: str, column: int = 1) -> Diagnostic:
    return Diagnostic(code="BTC374", message=message, span=_span(path, line, raw.rstrip("\r\n"), column))


def _span(path: Path, line: int, raw: str, column: int = 1) -> Span:
    span = line_span(shown_name(path), line, raw)
    return replace(span, column=min(column, span.end_column), end_column=max(column + 1, span.end_column))


def _passage(section: CorpusSection, path: Path, row: Row, columns: tuple[str, ...], number: int) -> Text:
    """Passage `number` (from 1) of the file."""

    def value(column: str) -> str:
        if column not in row.values:
            raise _missing_column(section, path, row, column, first=number == 1)
        found = row.values[column]
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return " ".join(found)  # HotpotQA and its like keep sentences apart
        if isinstance(found, list | dict):
            kind = "list" if isinstance(found, list) else "object"
            raise _BadRow(_finding(path, row.line, row.raw, f"column `{column}` holds a {kind}, not a text"))
        return "" if found is None else str(found)

    text = section.text.format_map({column: value(column) for column in columns})
    title_column = section.title or ("title" if "title" in row.values else None)
    title = value(title_column) if title_column else ""
    if section.id is None:
        return Text(str(number), title, text)
    identity = value(section.id)
    if not identity:
        message = f"the passage has no `{section.id}` to identify it by"
        raise _BadRow(Diagnostic(code="BTC376", message=message, span=_span(path, row.line, row.raw)))
    return Text(identity, title, text)


def _missing_column(section: CorpusSection, path: Path, row: Row, column: str, *, first: bool) -> _BadRow:
    """In the first row the spec is wrong, further down the row is."""
    return _BadRow(
        Diagnostic(
            code="BTC375",
            message=f"corpus `{shown_name(path)}` has no column `{column}`"
            if first
            else f"the row has no column `{column}`",
            span=section.span if first and section.span is not None else _span(path, row.line, row.raw),
            help=did_you_mean(column, row.values, what="its columns"),
        ),
        last=first,
    )


def _unique(path: Path, row: Row, identity: str, first_line: dict[str, int]) -> None:
    before = first_line.setdefault(identity, row.line)
    if before != row.line:
        raise _BadRow(
            Diagnostic(
                code="BTC376",
                message=f"passage id `{identity}` is used twice",
                span=_span(path, row.line, row.raw),
                notes=(f"first in line {before}",),
                help="an id has to name one passage; leave `id` out of the spec to number the rows",
            )
        )
