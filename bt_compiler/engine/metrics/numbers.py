"""Comparing numbers, also those that stand somewhere in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from bt_compiler.engine.metrics.metric import Compare, OptionError, quoted, type_name

_NUMBER = re.compile(
    r"""(?:(?<![\w.)])[-−+](?=[$€£.\d]))?           # a sign, unless it is the minus between two terms
        (?:[$€£]\s?)?
        (?:\d{1,3}(?:,\d{3})+(?!\d) | \d+ | (?=\.\d))
        (?:\.\d+)?
        (?:[eE][-+]?\d+(?!\w))?""",
    re.VERBOSE,
)
_LARGEST = 400
"""Power of ten, either way, beyond which nothing is taken for a number: floats end at 308."""


def last_number(text: str) -> Decimal | None:
    """The last number in a text, thousands separators and currency signs read over; None without one, or where it is
    beyond what floats reach.
    """
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group()
    return None if found is None else _read(found)


def texts_and_numbers(text: str) -> Iterator[tuple[str, Decimal | None]]:
    """A text cut into its numbers, each behind the text that stands before it; the rest of the text has None."""
    end = 0
    for match in _NUMBER.finditer(text):
        number = _read(match.group())
        if number is not None:
            yield text[end : match.start()], number
            end = match.end()
    yield text[end:], None


def _read(found: str) -> Decimal | None:
    try:
        number = Decimal(re.sub(r"[,$€£\s]", "", found).replace("−", "-"))
    except InvalidOperation:  # an exponent of more digits than there are numbers for
        return None
    return number if abs(number.adjusted()) <= _LARGEST else None


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        raise ValueError(f"`{str(value).lower()}` is no number")
    if isinstance(value, int | float):
        return Decimal(repr(value))
    if isinstance(value, str):
        return last_number(value)
    raise ValueError(f"a value of type `{type_name(value)}` holds no number")


def _label_number(label: Any) -> Decimal:
    """The number of a label; GSM8K writes its solution, then `#### 42`."""
    number = _number(label.rpartition("####")[2] if isinstance(label, str) else label)
    if number is None:
        raise ValueError(f"the label {quoted(label)} holds no number")
    return number


def numeric(options: Mapping[str, Any]) -> Compare:
    """The metric `numeric`: the last number of the output is the label's, within an optional tolerance."""
    relative, tolerance = _tolerance(options.get("tolerance", 0))

    def compare(output: Any, label: Any) -> float:
        if output is None or label is None:
            return float(output is label)
        expected, given = _label_number(label), _number(output)
        if given is None:
            return 0.0
        if not (given.is_finite() and expected.is_finite()):
            return float(given == expected)
        return float(abs(given - expected) <= (abs(expected) * tolerance if relative else tolerance))

    return compare


def _tolerance(value: Any) -> tuple[bool, Decimal]:
    """(relative to the label?, width) of `0.5` or `"1%"`. Raises OptionError."""
    relative = isinstance(value, str) and value.strip().endswith("%")
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else repr(value)
    if isinstance(value, bool) or not re.fullmatch(r"\d+(\.\d+)?([eE][-+]?\d+)?", text):
        raise OptionError("tolerance", "expects a number of at least 0 (`0.01`) or a share of the label (`1%`)")
    return relative, Decimal(text) / (100 if relative else 1)
