"""Reads a corpus: rows become passages with an id, a title and a rendered text.

Streams: memory holds one row and the ids seen. Knows rows and templates, nothing of files or indexes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from bt_compiler.data.files import parted_otherwise
from bt_compiler.data.selecting import fits
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.retrieval.corpus_rows import Row, corpus_rows, finding, row_span, shown_corpus
from bt_compiler.engine.retrieval.template import filled, template_fields
from bt_compiler.errors import DataError, SpecError
from bt_compiler.spec.sections import CorpusSection

_MOST_FINDINGS = 10
"""Findings in one file before reading stops."""


class Text(NamedTuple):
    """A passage before it is scored."""

    id: str
    title: str
    text: str


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
    read), BTC375 (no such column), BTC376 (id missing or used twice), BTC377 (no rows), and what `corpus_rows` raises.
    """
    columns = template_columns(section)
    name = shown_corpus(section)
    looked_at = {*columns, section.id or "", section.title or "title", *(one.column for one in section.where)}
    findings: list[Diagnostic] = []
    first_line: dict[str, int] = {}
    known: dict[str, Any] = {}
    count = taken = 0
    for item in corpus_rows(section, looked_at):
        count += 1
        try:
            if isinstance(item, Diagnostic):
                raise _BadRow(item)
            if section.where:
                known = {**item.values, **known}
                if not all(fits(condition, item.values) for condition in section.where):
                    continue
            taken += 1
            text = _passage(section, name, item, columns, count, elsewhere=known if taken == 1 else None)
            if section.id is not None:
                _unique(name, item, text.id, first_line)
        except _BadRow as bad:
            findings.append(bad.finding)
            if bad.last:
                break
            if len(findings) == _MOST_FINDINGS:
                stops = f"reading stops after {_MOST_FINDINGS} findings: there may be more further down"
                findings[-1] = replace(bad.finding, notes=(*bad.finding.notes, stops))
                break
            continue
        if not findings:
            yield text
    if findings:
        raise DataError(findings)
    if taken == 0:
        raise _nothing_taken(section, count, known)


def _nothing_taken(section: CorpusSection, rows: int, columns: Mapping[str, Any]) -> DataError:
    """`columns` have each a value of the first row that has it."""
    name = shown_corpus(section)
    absent = [condition.column for condition in section.where if condition.column not in columns]
    if rows == 0:
        return DataError.of("BTC377", f"corpus `{name}` has no rows", span=section.span)
    if absent:
        return DataError(
            [
                Diagnostic(
                    code="BTC375",
                    message=f"`where` filters corpus `{name}` by `{column}`, a column that it does not have",
                    span=section.spans.get(("where", column), section.span),
                    help=did_you_mean(column, columns, what="its columns"),
                )
                for column in absent
            ]
        )
    place = section.spans.get(("where", section.where[0].column), section.span)
    quoted = [
        f"`{condition.column}` holds true and false: write {value} without quotes"
        for condition in section.where
        for value in condition.among
        if isinstance(value, str) and value in ("true", "false") and isinstance(columns[condition.column], bool)
    ]
    return DataError.of(
        "BTC377", f"no passage of corpus `{name}` fits `where`", span=place, help=quoted[0] if quoted else None
    )


def template_columns(section: CorpusSection) -> tuple[str, ...]:
    """The columns that the text template names. Raises SpecError BTC378."""
    try:
        return template_fields(section.text)
    except ValueError as error:
        raise _template_error(section, str(error)) from error


def _template_error(section: CorpusSection, reason: str) -> SpecError:
    return SpecError.of(
        "BTC378",
        f"the corpus' `text` template `{section.text}` cannot be read: {reason}",
        span=section.spans.get(("text",), section.span),
        help="write columns in braces, as in `{title} | {text}`, and a literal brace twice",
    )


def _passage(
    section: CorpusSection,
    name: str,
    row: Row,
    columns: tuple[str, ...],
    number: int,
    *,
    elsewhere: Collection[str] | None,
) -> Text:
    """Passage `number` (from 1) of the file. `elsewhere`: for the first one taken, the columns of the rows before."""

    def value(column: str) -> str:
        if column not in row.values:
            raise _missing_column(section, name, row, column, first=elsewhere is not None and column not in elsewhere)
        found = row.values[column]
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return " ".join(found)  # HotpotQA and its like keep sentences apart
        if isinstance(found, list | dict):
            kind = "list" if isinstance(found, list) else "object"
            raise _BadRow(finding(name, row.line, row.raw, f"column `{column}` holds a {kind}, not a text"))
        return "" if found is None else str(found)

    text = filled(section.text, {column: value(column) for column in columns})
    title_column = section.title or ("title" if "title" in row.values else None)
    title = value(title_column) if title_column else ""
    if section.id is None:
        return Text(f"{section.prefix}{number}", title, text)
    identity = value(section.id)
    if not identity:
        message = f"the passage has no `{section.id}` to identify it by"
        raise _BadRow(Diagnostic(code="BTC376", message=message, span=row_span(name, row.line, row.raw)))
    return Text(identity, title, text)


def _missing_column(section: CorpusSection, name: str, row: Row, column: str, *, first: bool) -> _BadRow:
    """In the first row that is taken the spec is wrong, further down the row is."""
    setting = "id" if column == section.id else "title" if column == section.title else "text"
    span = section.spans.get((setting,), section.span)
    return _BadRow(
        Diagnostic(
            code="BTC375",
            message=f"corpus `{name}` has no column `{column}`" if first else f"the row has no column `{column}`",
            span=span if first and span is not None else row_span(name, row.line, row.raw),
            help=parted_otherwise(tuple(row.values)) or did_you_mean(column, row.values, what="its columns"),
        ),
        last=first,
    )


def _unique(name: str, row: Row, identity: str, first_line: dict[str, int]) -> None:
    before = first_line.setdefault(identity, row.line)
    if before != row.line:
        raise _BadRow(
            Diagnostic(
                code="BTC376",
                message=f"passage id `{identity}` is used twice",
                span=row_span(name, row.line, row.raw),
                notes=(f"first in line {before}",),
                help="an id has to name one passage; leave `id` out of the spec to number the rows",
            )
        )
