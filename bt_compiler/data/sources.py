"""From the sources that a spec names to tables: files, toy sets, data sets of the hub, and samples drawn from them.

Splits that sample one source are drawn together: one order by the seed, each takes the next rows, none is in two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bt_compiler.data.files import checked_rows, read_file
from bt_compiler.data.selecting import Selection
from bt_compiler.data.table import Table
from bt_compiler.data.tabular import HUB, read_hub_set
from bt_compiler.data.toy_sets import PREFIX, read_toy_set
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import DataError
from bt_compiler.spec.sections import SourceSection


def drawn_together(sources: Mapping[str, SourceSection]) -> list[list[str]]:
    """Names of the sources in groups that are read at once, in their order."""
    groups: dict[object, list[str]] = {}
    for name, source in sources.items():
        key = name if source.sample is None else (source.path, source.where, source.limit, source.seed)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def read_sources(
    sources: Mapping[str, SourceSection], columns: Sequence[str]
) -> tuple[dict[str, Table], list[Diagnostic]]:
    """The tables of one group of `drawn_together`, and notes. `columns` are those that are read (none: all), and
    that a draw depends on.

    Raises DataError: those of `read_file`, of toy sets and of the hub, and BTC324 where nothing is left for a sample.
    """
    first = next(iter(sources.values()))
    sizes = {name: source.sample for name, source in sources.items() if source.sample is not None}
    selection = Selection(
        where=first.where,
        limit=first.limit,
        sample=sum(sizes.values()) if sizes else None,
        seed=first.seed,
        columns=columns,
        spans=first.spans,
    )
    table = _read(first, selection)
    if not sizes:
        return {name: table for name in sources}, []
    tables: dict[str, Table] = {}
    notes: list[Diagnostic] = []
    for (name, size), rows in zip(sizes.items(), selection.shares(list(sizes.values())), strict=True):
        if not rows:
            raise _nothing_left(name, sizes, sources[name], selection.offered)
        if len(rows) < size:
            message = f"`sample` of `{name}` asks for {size} rows, {len(rows)} could be drawn"
            notes.append(Diagnostic(code="BTC334", message=message, span=sources[name].span, severity="note"))
        tables[name] = replace(table, rows=rows)
    return tables, notes


def _read(source: SourceSection, selection: Selection) -> Table:
    if source.path.startswith(PREFIX):
        table = read_toy_set(source.path, span=source.span, selection=selection)
        return checked_rows(table, selection, source.span)
    if source.path.startswith(HUB):
        return checked_rows(read_hub_set(source.path, selection, span=source.span), selection, source.span)
    return read_file(Path(source.path), span=source.span, selection=selection)


def _nothing_left(name: str, sizes: Mapping[str, int], source: SourceSection, rows: int) -> DataError:
    asked = ", ".join(f"{size} {split}" for split, size in sizes.items())
    return DataError.of(
        "BTC324",
        f"no rows are left for `{name}`: samples of {asked} are drawn from the same {rows} rows",
        span=source.span,
        help="ask for smaller samples",
    )
