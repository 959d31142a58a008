"""Which numbers an answer can give between the bounds of its type: they end, so that their digits and decimals do.

Knows nothing of how a type is written, nor of grammars.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

from bt_compiler.spec.types import Type

LARGEST = 9 * 10**18
"""No number that is written lies further from 0: engines hold bounds in 64 bits."""
MOST_DECIMALS = 10
"""llguidance takes no finer `multipleOf`."""
_USUAL = 10**15
"""Where a type without a bound ends."""
_USUAL_DIGITS = 15
_USUAL_DECIMALS = 4
_CHOICES = (10, 3)
"""Numbers that a narrow range should leave to choose from, and the fewest: engines may round the first and last off."""


class Range(NamedTuple):
    """Least and greatest number that is written."""

    low: float
    high: float


def written_range(t: Type) -> Range:
    """The bounds of an int or float; where one is missing, one that leaves room beyond the other."""
    low, high = t.minimum, t.maximum
    if low is None:
        low = -_beyond(0 if high is None else -high)
    if high is None:
        high = _beyond(low)
    return Range(max(low, -LARGEST), min(high, LARGEST))


def digits(t: Type) -> int:
    """Most digits before the point."""
    far = [bound for bound in written_range(t) if abs(bound) > _USUAL]
    return max((len(str(int(abs(bound)))) for bound in far), default=_USUAL_DIGITS)


def decimals(t: Type) -> int:
    """Most digits of a float after the point: four, more where the range is narrow. Raises ValueError where more than
    `MOST_DECIMALS` were needed.
    """
    low, high = written_range(t)
    for choice in (1,) if low == high else _CHOICES:
        for count in range(_USUAL_DECIMALS, MOST_DECIMALS + 1):
            if _multiples(low, high, count) >= choice:
                return count
    raise ValueError(f"numbers are written with {MOST_DECIMALS} decimals at most")


def check_writable(t: Type) -> None:
    """Raises ValueError where no answer can meet the bounds of an int or float."""
    if (t.minimum or 0) > LARGEST or (t.maximum or 0) < -LARGEST:
        raise ValueError(f"no number that is written lies further from 0 than {LARGEST}")
    if t.kind == "float":
        decimals(t)


def _beyond(bound: float) -> float:
    """The usual end, or one beyond a bound that is no less."""
    return _USUAL if bound < _USUAL else 10 ** len(str(int(bound)))


def _multiples(low: float, high: float, decimals: int) -> int:
    """Numbers of so many decimals in the range."""
    scale: int = 10**decimals
    return floor(Fraction(str(high)) * scale) - ceil(Fraction(str(low)) * scale) + 1
