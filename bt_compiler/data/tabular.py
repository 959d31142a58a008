"""Rows of parquet files and of data sets that the library `datasets` reads (`hf://…`). Both libraries are optional.

Values that JSON lacks become texts: dates and times in ISO form, decimals as written. NaN is null, for so pandas writes
a value that is missing. Numbers of few bits are the shortest that they can stand for (float32 1.1 is 1.1). Classes of
a data set go by their names. Bytes, infinities and times beyond the years 1 to 9999 are an error on their row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

from bt_compiler.data.packed import missing_package
from bt_compiler.data.selecting import Selection
from bt_compiler.data.table import Row, Table, line_span, shown_name
from bt_compiler.diagnostics import Span
from bt_compiler.errors import DataError

HUB = "hf://"
_HUB_SET = re.compile(
    r"hf://(?P<id>[^\[\]:]+)(?:\[(?P<config>[^\[\]]+)\])?:(?P<split>[^\W\d][\w.-]*)(?::(?P<rows>[1-9]\d*))?"
)


class HubSet(NamedTuple):
    """A data set as `hf://owner/name[config]:split:rows` names it."""

    id: str
    """`owner/name`, or the path of a local folder."""
    config: str | None
    split: str
    rows: int | None
    """The first so many rows; None: all."""


def hub_set(name: str, span: Span | None) -> HubSet:
    """Reads the name. Raises DataError BTC319."""
    found = _HUB_SET.fullmatch(name)
    if found is None:
        help = "write `hf://openai/gsm8k[main]:train`, with `:1000` behind it for the first 1000 rows"
        raise DataError.of("BTC319", f"`{name}` is no name of a data set's split", span=span, help=help)
    rows = found["rows"]
    return HubSet(found["id"], found["config"], found["split"], None if rows is None else int(rows))


def read_hub_set(name: str, selection: Selection, *, span: Span | None) -> Table:
    """The selected rows of a data set from the hub, its local cache or a folder.

    Raises DataError: BTC318 (`datasets` is missing), BTC319 (name), BTC327 (it cannot be loaded).
    """
    return _table(name, hub_values(name, span=span, wanted=selection.read), selection)


def hub_values(name: str, *, span: Span | None, wanted: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """As `read_hub_set`, a row at a time. Of columns that are not `wanted` rows have the name alone."""
    parts = hub_set(name, span)
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets", f"`{name}`") from error
    datasets.disable_progress_bars()
    try:
        if not Path(parts.id).is_absolute() and Path(parts.id).is_dir():
            message = f"the working folder has a folder `{parts.id}`, which would be read in place of `{name}`"
            help = "run it in another folder; a folder beside the spec is named by `hf://./FOLDER:SPLIT`"
            raise DataError.of("BTC327", message, span=span, help=help)  # those that specs name are absolute by now
        loaded = datasets.load_dataset(parts.id, parts.config, split=parts.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError.of(
            "BTC327",
            f"data set `{name}` cannot be loaded: {reason if len(reason) <= 300 else reason[:299] + '…'}",
            span=span,
            help="without a network only the local cache is asked; a file takes its place by "
            "`--set data.train.path=FILE` and the like",
        ) from error
    columns = tuple(loaded.column_names)
    rows = loaded if parts.rows is None else loaded.take(parts.rows)
    read = rows if wanted is None else rows.select_columns([column for column in columns if column in wanted])
    held = _held(read, name)
    named = ({column: _named(value, loaded.features[column]) for column, value in row.items()} for row in held)
    yield from _plain_rows(name, loaded.features.arrow_schema, named)


def _held(read: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a data set. Raises DataError BTC311 at a value that Python cannot hold."""
    rows = iter(read)
    for number in range(len(read)):
        try:
            row = next(rows)
        except (OverflowError, ValueError):
            table = read.with_format("arrow")[number : number + 1]
            for column in table.column_names:
                _values(table[column], name, number + 1, column)
            raise
        yield row


def read_parquet(path: Path, selection: Selection, *, span: Span | None) -> Table:
    """The selected rows of a parquet file, read in batches. Raises DataError BTC301, BTC304, BTC318."""
    return _table(shown_name(path), parquet_values(path, span=span, wanted=selection.read), selection)


def parquet_values(path: Path, *, span: Span | None, wanted: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """As `read_parquet`, a row at a time. Of columns that are not `wanted` rows have the name alone.

    Raises BTC308 too: two columns of one name.
    """
    name = shown_name(path)
    with _parquet_file(path, span) as file:
        columns = file.schema_arrow.names
        read = columns if wanted is None else [column for column in columns if column in wanted]
        if len(set(read)) != len(read):
            twice = next(column for column in read if read.count(column) > 1)
            message = f"`{name}` has the column `{twice}` twice"
            raise DataError.of("BTC308", message, span=span, help="rename one of them")
        batches = file.iter_batches(batch_size=1024, columns=read)
        yield from _plain_rows(name, file.schema_arrow, _rows(batches, name))


def count_parquet(path: Path) -> int:
    """Its rows, from the file's end. Raises DataError BTC304, BTC318."""
    with _parquet_file(path, None) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _parquet_file(path: Path, span: Span | None) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow", f"`{path.name}`") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError.of("BTC304", f"`{shown_name(path)}` cannot be read: {reason}", span=span) from error


def _rows(batches: Iterator[Any], name: str) -> Iterator[dict[str, Any]]:
    first = 1
    for batch in batches:
        columns = {column: _values(batch[column], name, first, column) for column in batch.schema.names}
        yield from ({column: values[row] for column, values in columns.items()} for row in range(batch.num_rows))
        first += batch.num_rows


def _values(array: Any, name: str, first: int, column: str) -> list[Any]:
    """An Arrow column as Python values; `first` is the number of its first row. Raises DataError BTC311."""
    if not _in_nanoseconds(array.type):
        with suppress(OverflowError, ValueError):  # raised again below, at its row
            return list(array.to_pylist())
    found: list[Any] = []
    for number, held in enumerate(array, first):
        try:
            found.append(_value(held))
        except (OverflowError, ValueError) as error:
            what = f"what cannot be read: {error}"
            if isinstance(error, OverflowError):
                what = "a time beyond the years 1 to 9999"
            elif (zone := getattr(held.type, "tz", None)) is not None:
                what = f"a time in `{zone}`, a time zone that is not known here"
            message = f"`{column}` of row {number} holds {what}"
            raise DataError.of("BTC311", message, span=line_span(name, number, "")) from error
    return found


def _value(held: Any) -> Any:
    """An Arrow scalar as a Python value; with nanoseconds, for which `datetime` has no digits, as pandas' ISO text."""
    if not _in_nanoseconds(held.type) or not held.is_valid or held.value % 1000 == 0:
        return held.as_py()
    import pyarrow

    whole, rest = divmod(held.value, 1000)
    zone = getattr(held.type, "tz", None)
    kind = pyarrow.time64("us") if pyarrow.types.is_time(held.type) else pyarrow.timestamp("us", zone)
    text = pyarrow.scalar(whole, kind).as_py().isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{rest:03}{text[end:]}"


def _in_nanoseconds(kind: Any) -> bool:
    return str(kind).startswith(("timestamp[ns", "time64[ns"))


def _plain_rows(name: str, schema: Any, values: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of JSON values, every column of the Arrow schema in its place."""
    columns = {column: schema.field(index).type for index, column in enumerate(schema.names)}
    for number, row in enumerate(values, 1):
        yield {column: _plain(_short(row.get(column), kind), name, number, column) for column, kind in columns.items()}


def _short(value: Any, kind: Any) -> Any:
    """A value of an Arrow type, where float32 and float16 are not widened to the digits of a float64. What the library
    decoded to something else than the type holds stays as it is.
    """
    kind = getattr(kind, "storage_type", kind)
    if isinstance(value, float):
        kind = getattr(kind, "value_type", kind)  # of a dictionary
        return float(str(kind.to_pandas_dtype()(value))) if str(kind) in ("float", "halffloat") else value
    if isinstance(value, Mapping):
        kinds = {field.name: field.type for field in kind} if hasattr(kind, "get_field_index") else {}
        return {name: _short(item, kinds.get(name)) for name, item in value.items()}
    if isinstance(value, list) and hasattr(kind, "item_type"):
        return [(key, _short(item, kind.item_type)) for key, item in value]
    if isinstance(value, list):
        return [_short(item, getattr(kind, "value_type", None)) for item in value]
    return value


def _named(value: Any, feature: Any) -> Any:
    """The value with the names of classes for their numbers, at every depth; -1, which is no class, is null."""
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return feature.names[value] if value is not None and value >= 0 else None
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {key: _named(item, feature[key]) for key, item in value.items()}
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_named(item, feature.feature) for item in value]
    return value


def _table(name: str, values: Iterator[Mapping[str, Any]], selection: Selection) -> Table:
    columns: tuple[str, ...] = ()
    for number, row in enumerate(values, 1):
        if selection.full:
            break
        columns = tuple(row)
        read = {column: value for column, value in row.items() if selection.read is None or column in selection.read}
        selection.offer(Row(line=number, text=json.dumps(read, ensure_ascii=False), values=read))
    return Table(name=name, rows=selection.rows(), columns=columns)


def _plain(value: Any, name: str, number: int, column: str) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name, number, column) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name, number, column) for item in value]
    if isinstance(value, float) and isnan(value):
        return None
    if value is None or isinstance(value, str | int | bool) or (isinstance(value, float) and isfinite(value)):
        return value
    what = "an infinite number" if isinstance(value, float) else f"a value of type `{type(value).__name__}`"
    message = f"`{column}` of row {number} holds {what}, which no spec can name"
    raise DataError.of("BTC311", message, span=line_span(name, number, ""))
