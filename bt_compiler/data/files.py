"""Data files to tables, with the line of everything that cannot be read: JSONL and CSV here, parquet in `tabular`.

Knows nothing of fields or types.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

from bt_compiler.canonical import canonical_json, unrepeated
from bt_compiler.data.packed import csv_cells, data_lines, format_suffix
from bt_compiler.data.selecting import Selection
from bt_compiler.data.table import Row, Table, cut_short, line_span, shown_name
from bt_compiler.data.tabular import read_parquet
from bt_compiler.diagnostics import Diagnostic, Span, did_you_mean
from bt_compiler.errors import DataError

JSONL_SUFFIXES = (".jsonl", ".ndjson")
CSV_SUFFIXES = (".csv",)


def read_file(path: Path, *, span: Span | None, limit: int | None = None, selection: Selection | None = None) -> Table:
    """The rows of a file that `selection` wants, else the first `limit`. `span` is where the spec names it.

    JSONL and parquet are read a row at a time: memory holds the rows that are kept; a CSV is read whole.

    Raises DataError: BTC301 missing, BTC302 a folder, BTC303 unknown format, BTC304 unreadable, BTC305 not UTF-8 text,
    BTC306 no rows, BTC307 broken JSON lines, BTC308 broken CSV rows, BTC318 a package for the format is missing,
    BTC325 a filter on a column that is not there, BTC326 no row fits.
    """
    suffix = format_suffix(path)
    if _is_folder(path, span):
        help = "name a file in it: `data: {train: train.jsonl, dev: …, test: …}`"
        raise DataError.of("BTC302", f"`{shown_name(path)}` is a folder, not a data file", span=span, help=help)
    if suffix not in (*JSONL_SUFFIXES, *CSV_SUFFIXES, ".parquet"):
        raise DataError.of(
            "BTC303",
            f"`{shown_name(path)}` has no format that can be read",
            span=span,
            help="data is `.jsonl`, `.csv`, `.parquet`, `sklearn:NAME` or `hf://owner/name:split`",
        )
    chosen = selection or Selection(limit=limit)
    if suffix == ".parquet":
        _require_file(path, span)
        return checked_rows(read_parquet(path, chosen, span=span), chosen, span)
    table = _read_csv(path, _text_of(path, span), chosen) if suffix in CSV_SUFFIXES else _read_jsonl(path, span, chosen)
    return checked_rows(table, chosen, span)


def checked_rows(table: Table, selection: Selection, span: Span | None) -> Table:
    """The table where it has rows. Raises DataError BTC306, BTC325, BTC326."""
    found = [
        Diagnostic(
            code="BTC325",
            message=f"`where` filters `{table.name}` by `{column}`, a column that it does not have",
            span=selection.spans.get(("where", column), span),
            help=did_you_mean(column, table.columns, what="the columns"),
        )
        for column in (condition.column for condition in selection.where)
        if column not in table.columns and table.columns
    ]
    if found:
        raise DataError(found)
    if table.rows:
        return table
    if selection.where and table.columns:
        columns = ", ".join(f"`{condition.column}`" for condition in selection.where)
        help = f"see what {columns} may be, and `where`"
        place = selection.spans.get(("where", selection.where[0].column), span)
        raise DataError.of("BTC326", f"no row of `{table.name}` fits `where`", span=place, help=help)
    what = "no rows below its header line" if table.header else "no rows"
    raise DataError.of("BTC306", f"`{table.name}` has {what}", span=span)


def _is_folder(path: Path, span: Span | None) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long for the file system
        raise _unreadable(path, error, span) from error


def _unreadable(path: Path, error: OSError, span: Span | None) -> DataError:
    why = (error.strerror or str(error)).lower()
    return DataError.of("BTC304", f"`{shown_name(path)}` cannot be read: {why}", span=span)


def _require_file(path: Path, span: Span | None) -> None:
    if not path.exists():
        help = _neighbours(path, span)
        raise DataError.of("BTC301", f"data file `{shown_name(path)}` does not exist", span=span, help=help)


def _lines_of(path: Path, span: Span | None) -> Iterator[bytes]:
    """The lines of a file as they are read. Raises DataError BTC301, BTC304, BTC318."""
    try:
        yield from data_lines(path)
    except FileNotFoundError as error:
        help = _neighbours(path, span)
        raise DataError.of("BTC301", f"data file `{shown_name(path)}` does not exist", span=span, help=help) from error
    except OSError as error:
        raise _unreadable(path, error, span) from error


def _text_of(path: Path, span: Span | None) -> str:
    name = shown_name(path)
    data = b"".join(_lines_of(path, span))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_text(name, line, f"byte {data[error.start]:#04x} is not UTF-8", span) from error
    if "\0" in text:
        raise _not_text(name, text.count("\n", 0, text.index("\0")) + 1, "it has a zero byte", span)
    return text


def _not_text(name: str, line: int, why: str, span: Span | None) -> DataError:
    help = "save it as UTF-8; a compressed or binary file has to be unpacked or converted first"
    return DataError.of("BTC305", f"`{name}` is not UTF-8 text: {why} in line {line}", span=span, help=help)


def _neighbours(path: Path, span: Span | None) -> str:
    try:
        known = sorted(item.name for item in path.parent.iterdir() if format_suffix(item) in (".jsonl", ".csv"))
    except OSError:
        return f"the folder `{shown_name(path.parent)}` does not exist either"
    shown = ", ".join(f"`{name}`" for name in known[:10]) or "no `.jsonl` or `.csv` file"
    of_command = span is None or span.source.name.startswith("--set")
    base = "the working folder" if of_command else "the spec's folder"
    return f"`{shown_name(path.parent)}` holds {shown}; paths are relative to {base}"


def _constant(name: str) -> None:
    """NaN, as Python and pandas write what is not there, is null. Raises ValueError for the infinities."""
    if name != "NaN":
        raise ValueError(f"`{name}` is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"`{text[:40]}` is too large a number")
    return number


_JSON = json.JSONDecoder(parse_constant=_constant, parse_float=_finite, object_pairs_hook=unrepeated)
"""Made once: `json.loads` makes one a call where it is given options."""


def _read_jsonl(path: Path, span: Span | None, selection: Selection) -> Table:
    name, broken = shown_name(path), list[Diagnostic]()
    columns: dict[str, None] = {}
    whole = True
    for number, data in enumerate(_lines_of(path, span), 1):
        if not data.strip():
            continue
        if selection.full:
            whole = False
            break
        line = _decoded(data, number, name, span)
        try:
            value = _JSON.decode(line)
            if "\\u" in line:
                canonical_json(value).encode("utf-8")  # half a surrogate pair is no text that can be passed on
        except (ValueError, RecursionError) as error:
            broken.append(_broken_line(name, number, line, error))
            continue
        if not isinstance(value, dict):
            kind = "a list" if isinstance(value, list) else f"`{line.strip()[:40]}`"
            message = f"line {number} is {kind}, not an object"
            help = 'write one object a line: `{"question": "…", "answer": "…"}`'
            broken.append(Diagnostic(code="BTC307", message=message, span=line_span(name, number, line), help=help))
            continue
        columns |= dict.fromkeys(value)
        selection.offer(Row(line=number, text=line, values=value))
    if broken:
        raise DataError(cut_short(broken, "broken lines"))
    return Table(name=name, rows=selection.rows(), columns=tuple(columns), whole=whole)


def _decoded(data: bytes, number: int, name: str, span: Span | None) -> str:
    try:
        line = data.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")  # the mark of each file put together
    except UnicodeDecodeError as error:
        raise _not_text(name, number, f"byte {data[error.start]:#04x} is not UTF-8", span) from error
    if "\0" in line:
        raise _not_text(name, number, "it has a zero byte", span)
    return line


def json_fault(error: Exception) -> str:
    """What `json` has against a text, without its place and without advice to whoever writes Python."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:1].lower() + error.msg[1:].removesuffix(" at").removesuffix(" starting")
    return "a number has too many digits" if "set_int_max_str_digits" in str(error) else str(error)


def _broken_line(name: str, number: int, line: str, error: Exception) -> Diagnostic:
    span = line_span(name, number, line)
    why = json_fault(error)
    if isinstance(error, UnicodeEncodeError):
        why = "half a surrogate pair is no character"
    if isinstance(error, json.JSONDecodeError):
        start = min(error.colno, len(line) + 1)
        span = Span(source=span.source, line=number, column=start, end_line=number, end_column=start + 1)
    help = None
    if number == 1 and line.strip() in ("[", "{"):
        help = "JSONL has one whole object on each line; this looks like an indented JSON document"
    return Diagnostic(code="BTC307", message=f"line {number} is not JSON: {why}", span=span, help=help)


def _read_csv(path: Path, text: str, selection: Selection) -> Table:
    name, lines = shown_name(path), re.split(r"\r\n|\n|\r", text)
    broken: list[Diagnostic] = []
    cells_of = _csv_rows(name, text, lines, broken)
    header_line, names = next(cells_of, (1, []))
    if names and names[0].startswith("sep="):
        raise DataError.of(
            "BTC308",
            f"`{names[0]}` is a note to Excel, no header",
            span=line_span(name, header_line, lines[header_line - 1]),
            help="delete that line; the cells have to be parted by commas",
        )
    header = tuple(cell.strip() for cell in names)
    columns = tuple(filter(None, header))  # Excel writes empty columns along, pandas the numbers of rows
    taken = False
    for number, cells in cells_of:
        if selection.full:
            break
        if len(cells) != len(header):
            quotes = "put a cell that holds a comma or a line break in double quotes"
            help = parted_otherwise(columns) or (quotes if len(cells) > len(header) else None)
            message = f"the row has {len(cells)} cells, the header {len(header)}"
            span = line_span(name, number, lines[number - 1])
            broken.append(Diagnostic(code="BTC308", message=message, span=span, help=help))
            continue
        taken = True
        values = {column: cell for column, cell in zip(header, cells, strict=True) if column}
        selection.offer(Row(line=number, text=lines[number - 1], values=values))
    if broken:
        raise DataError(cut_short(broken, "broken rows"))
    if len(set(columns)) != len(columns) and taken and not any(_is_number(cell) for cell in columns):
        twice = next(cell for cell in columns if columns.count(cell) > 1)
        span = line_span(name, header_line, lines[header_line - 1])
        raise DataError.of("BTC308", f"the header names column `{twice}` twice", span=span)
    return Table(
        name=name, rows=selection.rows(), header=lines[header_line - 1], header_line=header_line, columns=columns
    )


def _csv_rows(name: str, text: str, lines: list[str], broken: list[Diagnostic]) -> Iterator[tuple[int, list[str]]]:
    """(line it starts on, cells) of every row that is not blank; ends at what is not CSV."""
    reader = csv_cells(io.StringIO(text, newline=""))
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quote is opened and never closed" if "unexpected end" in str(error) else str(error)
            span = line_span(name, start, lines[min(start, len(lines)) - 1])
            broken.append(Diagnostic(code="BTC308", message=f"the row cannot be read: {why}", span=span))
            return
        if any(cell.strip() for cell in cells):
            yield start, cells


def parted_otherwise(columns: Sequence[str]) -> str | None:
    """Help where a CSV is one column for want of commas: Excel writes `;` where decimals have a comma."""
    for sign, name in ((";", "`;`"), ("\t", "tabs")):
        if len(columns) == 1 and sign in columns[0]:
            return f"its cells are parted by {name}: save it with commas"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def header_is_data(table: Table, values: set[str]) -> bool:
    """Whether what should be the header of a CSV looks like a row: a number, a long text or one of `values` (of the
    enums that are asked for) in it.
    """
    return table.header is not None and any(
        _is_number(cell) or len(cell) > 60 or cell in values for cell in table.columns
    )
