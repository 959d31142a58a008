"""Rows of a corpus as they are read: JSONL and CSV line by line, parquet in batches, sets of the hub by `datasets`.

What cannot be read comes as a finding in the row's place. Knows files, nothing of passages or indexes.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bt_compiler.canonical import unrepeated, whole
from bt_compiler.data.files import json_fault
from bt_compiler.data.packed import PACKED, csv_cells, data_lines, format_suffix
from bt_compiler.data.table import line_span, shown_name
from bt_compiler.data.tabular import HUB, count_parquet, hub_values, parquet_values
from bt_compiler.diagnostics import Diagnostic, Span
from bt_compiler.errors import DataError
from bt_compiler.spec.sections import CorpusSection

_JSON = json.JSONDecoder(object_pairs_hook=unrepeated)


class Row(NamedTuple):
    """One record, and where it stands."""

    line: int
    """Number of its first line, or of the row, from 1."""
    values: Mapping[str, Any]
    """By column; where columns are stored apart, those that nobody asked for are None."""
    raw: str
    """That line, for error messages."""


def in_hub(section: CorpusSection) -> bool:
    """Whether the corpus is a data set and not a file."""
    return section.path.startswith(HUB)


def shown_corpus(section: CorpusSection) -> str:
    """The corpus as messages name it."""
    return section.path if in_hub(section) else shown_name(Path(section.path))


def count_rows(section: CorpusSection) -> int | None:
    """About how many rows there are, for progress; None: unknown. Raises OSError."""
    path = Path(section.path)
    if in_hub(section):
        return None
    if format_suffix(path) == ".parquet":
        return count_parquet(path)
    if path.suffix.lower() in PACKED:
        return sum(1 for _ in data_lines(path))
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def corpus_rows(section: CorpusSection, wanted: Collection[str]) -> Iterator[Row | Diagnostic]:
    """Every row in order; `wanted` are the columns that are looked at.

    Raises DataError BTC373 (file); BTC304, BTC311, BTC318, BTC319, BTC327 for parquet and the hub.
    """
    if in_hub(section):
        yield from _columnar(hub_values(section.path, span=section.span, wanted=wanted))
        return
    path = Path(section.path)
    reader = _READERS.get(format_suffix(path))
    if reader is None:
        raise DataError.of(
            "BTC373",
            f"corpus `{shown_name(path)}` is of no known format",
            span=section.span,
            help="name a `.jsonl` or `.csv` file, or one of them as `.gz` or `.zst`, a `.parquet` file, or "
            "`hf://owner/name:split`",
        )
    try:
        yield from reader(path, section, wanted)
    except OSError as error:
        raise unreadable(section, error) from error


def unreadable(section: CorpusSection, error: OSError) -> DataError:
    """BTC373."""
    reason = (error.strerror or str(error)).lower()
    return DataError.of("BTC373", f"corpus `{shown_corpus(section)}` cannot be read: {reason}", span=section.span)


def finding(name: str, line: int, raw: str, message: str, column: int = 1) -> Diagnostic:
    """BTC374 at a row."""
    return Diagnostic(code="BTC374", message=message, span=row_span(name, line, raw.rstrip("\r\n"), column))


def row_span(name: str, line: int, raw: str, column: int = 1) -> Span:
    """The row, from `column` on."""
    span = line_span(name, line, raw)
    return replace(span, column=min(column, span.end_column), end_column=max(column + 1, span.end_column))


def _columnar(values: Iterator[Mapping[str, Any]]) -> Iterator[Row]:
    for number, row in enumerate(values, 1):
        yield Row(number, row, json.dumps(row, ensure_ascii=False))


def _parquet(path: Path, section: CorpusSection, wanted: Collection[str]) -> Iterator[Row | Diagnostic]:
    with path.open("rb"):  # what is not there is said as of any corpus
        yield from _columnar(parquet_values(path, span=section.span, wanted=wanted))


def _jsonl(path: Path, section: CorpusSection, wanted: Collection[str]) -> Iterator[Row | Diagnostic]:
    del section, wanted
    name = shown_name(path)
    for number, raw in enumerate(data_lines(path), 1):
        data = raw.removeprefix(codecs.BOM_UTF8)
        if not data.strip():
            continue
        try:
            line = data.decode("utf-8")
            values = _JSON.decode(line)
        except UnicodeDecodeError as error:
            yield finding(name, number, data.decode("utf-8", "replace"), "not UTF-8 text", error.start + 1)
            continue
        except (RecursionError, ValueError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else 1
            yield finding(name, number, line, f"broken JSON: {json_fault(error)}", column)
            continue
        if "\\ud" in line.lower() and whole(values) != values:
            yield finding(name, number, line, "half a surrogate pair, which is no character")
        elif isinstance(values, dict):
            yield Row(number, values, line.rstrip("\r\n"))
        else:
            yield finding(name, number, line, "a row has to be a JSON object, `{…}`")


def _csv(path: Path, section: CorpusSection, wanted: Collection[str]) -> Iterator[Row | Diagnostic]:
    del section, wanted
    name, number = shown_name(path), 0
    with closing(data_lines(path)) as lines:
        reader = csv_cells(codecs.iterdecode(lines, "utf-8-sig"))
        try:
            header = next(reader, [])
            number = reader.line_num
            columns = [cell for cell in header if cell]  # those without a name are none, as in data
            if len(set(columns)) != len(columns):
                twice = next(cell for cell in columns if columns.count(cell) > 1)
                yield finding(name, number, ",".join(header), f"the header names column `{twice}` twice")
                return
            for cells in reader:
                number, start = reader.line_num, number + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    message = f"{len(cells)} cells where the header has {len(header)} columns"
                    yield finding(name, start, ",".join(cells), message)
                else:
                    values = {column: cell for column, cell in zip(header, cells, strict=True) if column}
                    yield Row(start, values, ",".join(cells))
        except csv.Error as error:
            yield finding(name, number + 1, "", f"broken CSV: {error}")
        except UnicodeDecodeError:
            yield finding(name, number + 1, "", "not UTF-8 text")


_Reader = Callable[[Path, CorpusSection, Collection[str]], Iterator[Row | Diagnostic]]
_READERS: Mapping[str, _Reader] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
