"""Which rows of a source are taken: filters, the first so many, a seeded sample. Rows stream by, few are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.data.table import Row
from bt_compiler.spec import convert
from bt_compiler.spec.sections import Condition, Spans
from bt_compiler.spec.types import BOOL

_ROOM = 1000
"""Rows kept beyond the sample before the list is cut."""


class Selection:
    """Takes rows in the order of the file and keeps those that are wanted.

    A sample is drawn by ranks: each row's is the hash of the seed and of the columns that are read, so that neither
    the order of the file nor other columns decide, and exact copies have one rank.
    """

    def __init__(
        self,
        *,
        where: Sequence[Condition] = (),
        limit: int | None = None,
        sample: int | None = None,
        seed: int = 0,
        columns: Sequence[str] = (),
        spans: Spans = MappingProxyType({}),
    ) -> None:
        """`columns`: those that a sample is drawn by. `spans`: where the spec has `(where, COLUMN)`."""
        self.where = tuple(where)
        self.spans = spans
        self.offered = 0
        """Rows that fit `where`."""
        self._limit = limit
        self._sample = sample
        self._seed = seed
        self._columns = tuple(columns)
        self.read = frozenset((*columns, *(condition.column for condition in where))) if columns else None
        """The columns that are looked at: `columns` and those of `where`; None, where `columns` names none: all."""
        self._kept: list[tuple[str, Row]] = []

    @property
    def full(self) -> bool:
        """Whether no further row can be wanted."""
        return self._limit is not None and self.offered >= self._limit

    def offer(self, row: Row) -> None:
        """Looks at the next row."""
        if self.full or not all(fits(condition, row.values) for condition in self.where):
            return
        self.offered += 1
        if self._sample is None:
            self._kept.append(("", row))
            return
        values = {column: row.values.get(column) for column in self._columns}
        self._kept.append((digest([self._seed, values]), row))
        if len(self._kept) > 2 * self._sample + _ROOM:
            self._cut(self._sample)

    def rows(self) -> tuple[Row, ...]:
        """The rows wanted, in the order of the file. A sample has fewer than asked for where there are fewer."""
        if self._sample is None:
            return tuple(row for _, row in self._kept)
        return self.shares([self._sample])[0]

    def shares(self, sizes: Sequence[int]) -> list[tuple[Row, ...]]:
        """The sample as parts of these sizes that do not overlap, copies in one part, each in the order of the file."""
        groups = [[row for _, row in group] for _, group in groupby(sorted(self._kept, key=_rank), key=_rank)]
        parts: list[tuple[Row, ...]] = []
        for size in sizes:
            part: list[Row] = []
            while groups and len(part) < size:
                group = groups.pop(0)
                part += group[: size - len(part)]  # copies beyond the size are dropped, not put elsewhere
            parts.append(tuple(sorted(part, key=lambda row: row.line)))
        return parts

    def _cut(self, size: int) -> None:
        self._kept.sort(key=_rank)
        last = self._kept[size - 1][0]
        self._kept = [item for item in self._kept if item[0] <= last]


def _rank(item: tuple[str, Row]) -> str:
    return item[0]


def fits(condition: Condition, values: Mapping[str, Any]) -> bool:
    """Whether a row fits. A column that holds a list fits where one of its elements does."""
    found = values.get(condition.column)
    several = found if isinstance(found, list) else [found]
    if condition.among and not any(_same(value, wanted) for value in several for wanted in condition.among):
        return False
    if any(_same(value, wanted) for value in several for wanted in condition.excluded):
        return False
    if condition.least is None and condition.most is None:
        return True
    numbers = [number for value in several if (number := _number(value)) is not None]
    low = float("-inf") if condition.least is None else condition.least
    high = float("inf") if condition.most is None else condition.most
    return any(low <= number <= high for number in numbers)


def _same(value: Any, wanted: Any) -> bool:
    """Equality of a cell, which a CSV holds as text, and a value of the spec."""
    if wanted is None:
        return value is None or value == ""
    if isinstance(wanted, bool):
        return _bool(value) is wanted
    if isinstance(wanted, int | float):
        return _number(value) == wanted
    if isinstance(value, bool | dict | list) or value is None:
        return False
    return str(value).strip() == str(wanted).strip()


def _bool(value: Any) -> bool | None:
    """As the type `bool` reads a cell; None where it does not."""
    try:
        return bool(convert(value, BOOL))
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
