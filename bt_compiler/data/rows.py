"""From the rows of a table to examples: column mapping and type conversion, a diagnostic for every cell that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bt_compiler.data.example import Example, make_example
from bt_compiler.data.extraction import extracted
from bt_compiler.data.files import header_is_data, parted_otherwise
from bt_compiler.data.table import Row, Table, cut_short
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.errors import DataError
from bt_compiler.spec import Field, Type, convert, convert_text, show_type, takes_null
from bt_compiler.spec.sections import Extraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is read of a table. Other columns are never looked at."""

    inputs: tuple[Field, ...]
    labels: tuple[Field, ...]
    optional: tuple[Field, ...] = ()
    """Labels that are read where the table has their column."""
    columns: Mapping[str, str]
    """Field -> column, where the names differ."""
    extract: Mapping[str, Extraction] = field(default_factory=dict)
    """Field -> how it is cut out of its column."""

    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        return tuple(dict.fromkeys(self.column(item) for item in (*self.inputs, *self.labels, *self.optional)))

    def column(self, field: Field) -> str:
        """The column a field is read from."""
        return self.columns.get(field.name, field.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """An example and the row it comes from."""

    example: Example
    table: Table
    row: Row


def examples_of(table: Table, wanted: Wanted) -> list[Located]:
    """One example a row, in order; ids count no copies yet.

    Raises DataError: BTC309 no header line, BTC310 missing columns, BTC311 bad cells.
    """
    _require_columns(table, wanted)
    labels = [*wanted.labels, *(item for item in wanted.optional if wanted.column(item) in table.columns)]
    bad: list[Diagnostic] = []
    found: list[Located] = []
    for row in table.rows:
        inputs = _read(row, wanted.inputs, "input", table, wanted, bad)
        outputs = _read(row, labels, "label", table, wanted, bad)
        if not bad:
            example = replace(make_example(inputs, outputs), place=f"{table.name}:{row.line}")
            found.append(Located(example=example, table=table, row=row))
    if bad:
        raise DataError(cut_short(bad, "cells that do not fit"))
    return found


def _require_columns(table: Table, wanted: Wanted) -> None:
    needed = [(item, "input") for item in wanted.inputs] + [(item, "label") for item in wanted.labels]
    missing = [(item, what) for item, what in needed if wanted.column(item) not in table.columns]
    missing = [(item, what) for item, what in missing if table.header is not None or not takes_null(item.type)]
    if not missing:
        return
    values = {value for item, _ in needed for value in item.type.values}
    if header_is_data(table, values):
        names = ",".join(wanted.column(item) for item, _ in needed)
        raise DataError.of(
            "BTC309",
            f"`{table.name}` has no header line: its first line is data",
            span=table.top(),
            help=f"put a line that names the columns above it, here `{names}` in the order of the data",
        )
    diagnostics = []
    parted = parted_otherwise(table.columns)
    for item, what in missing:
        column = wanted.column(item)
        reads = "" if column == item.name else f", which `columns` reads from `{column}`"
        help = did_you_mean(column, table.columns, what="the columns")
        if help.startswith("the columns") and column == item.name:
            help += f"; another name is mapped by `data: {{columns: {{{item.name}: COLUMN}}}}`"
        diagnostics.append(
            Diagnostic(
                code="BTC310",
                message=f"the data has no column for {what} `{item.name}`{reads}",
                span=table.top(),
                help=parted or help,
            )
        )
    raise DataError(diagnostics)


def _read(
    row: Row, fields: Sequence[Field], what: str, table: Table, wanted: Wanted, bad: list[Diagnostic]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields:
        column = wanted.column(item)
        if column not in row.values and not takes_null(item.type):
            bad.append(
                Diagnostic(code="BTC311", message=f"line {row.line} lacks {what} `{column}`", span=table.span(row))
            )
            continue
        found, how, of_csv = row.values.get(column), wanted.extract.get(item.name), table.header is not None
        try:
            values[item.name] = _value(found, item.type, how, of_csv=of_csv)
        except ValueError as error:
            shown = show_type(item.type)
            detail = str(error)
            prefix = "" if f"`{shown}`" in detail else f" of type `{shown}`"
            message = f"{what} `{column}`{prefix}: {detail}"
            help = _unbounded(item, found, how, of_csv=of_csv) if what == "label" and item.type.kind == "list" else None
            bad.append(Diagnostic(code="BTC311", message=message, span=table.span(row), help=help))
    return values


def _unbounded(label: Field, found: Any, how: Extraction | None, *, of_csv: bool) -> str | None:
    """Help for a list of right answers that only bounds keep out: those of an output say how many a model may give."""
    free = replace(label.type, name=None, minimum=None, maximum=None)
    try:
        _value(found, free, how, of_csv=of_csv)
    except ValueError:
        return None
    own = f"under `{label.name}` in `data: {{labels: {{}}}}`"
    return f"a label may have a type of its own: write that of the output without its bounds {own}"


def _value(found: Any, type: Type, how: Extraction | None, *, of_csv: bool) -> Any:
    """What stands in a row as a value of `type`. Raises ValueError."""
    if of_csv and takes_null(type) and (found == "" or (_is_nan(found) and not _fits(found, type))):
        found = None  # a CSV has no other way to leave a value out
    if how is not None and not (found is None and takes_null(type)):
        found = extracted(found, how)
    if isinstance(found, str) and (of_csv or how is not None):
        return convert_text(found, type)
    return convert(found, type)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip().lower() == "nan"


def _fits(cell: str, type: Type) -> bool:
    try:
        convert_text(cell, type)
    except ValueError:
        return False
    return True
