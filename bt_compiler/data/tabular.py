"""Rows of parquet files and of data sets that the library `datasets` reads (`hf://…`). Both libraries are optional.

Values that JSON lacks become texts: dates in ISO form, decimals as written. Bytes are an error on their row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from decimal import Decimal
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
    wanted = hub_set(name, span)
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets", f"`{name}`") from error
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(wanted.id, wanted.config, split=wanted.split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError.of(
            "BTC327",
            f"data set `{name}` cannot be loaded: {reason if len(reason) <= 300 else reason[:299] + '…'}",
            span=span,
            help="without a network only the local cache is asked; a file takes its place by "
            "`--set data.train.path=FILE` and the like",
        ) from error
    rows = loaded if wanted.rows is None else loaded.take(wanted.rows)
    return _table(name, tuple(loaded.column_names), iter(rows), selection)


def read_parquet(path: Path, selection: Selection, *, span: Span | None) -> Table:
    """The selected rows of a parquet file, read in batches. Raises DataError BTC301, BTC304, BTC318."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_package("pyarrow", f"`{path.name}`") from error
    name = shown_name(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
            return _table(name, tuple(file.schema_arrow.names), rows, selection)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError.of("BTC304", f"`{name}` cannot be read: {reason}", span=span) from error


def _table(name: str, columns: tuple[str, ...], values: Iterator[Mapping[str, Any]], selection: Selection) -> Table:
    for number, row in enumerate(values, 1):
        if selection.full:
            break
        plain = {column: _plain(value, name, number) for column, value in row.items()}
        text = json.dumps(plain, ensure_ascii=False)
        selection.offer(Row(line=number, text=text, values=plain))
    return Table(name=name, rows=selection.rows(), columns=columns)


def _plain(value: Any, name: str, number: int) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name, number) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, name, number) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    message = f"row {number} holds a value of type `{type(value).__name__}`, which no spec can name"
    raise DataError.of("BTC311", message, span=line_span(name, number, ""))
