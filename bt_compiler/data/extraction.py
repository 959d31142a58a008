"""Cutting a field's value out of a longer text: by a regular expression, or the number after a mark."""

from __future__ import annotations

import re
from typing import Any

from bt_compiler.spec.sections import Extraction

_NUMBER = re.compile(
    r"""\s*([-−+]?)\s?[$€£]?\s?
        (\d{1,3}(?:,\d{3})+ | \d+ | (?=\.\d))(\.\d+)?
        (?! \w | [-−–.,:/'’^]\d | [^\S\n](?:\d{3}(?!\d) | \d+/\d))    # more of the same figure: it is not cut short""",
    re.VERBOSE,
)


def extracted(value: Any, how: Extraction) -> str:
    """The part of a cell's text that is meant. Raises ValueError with a readable message where it is not there."""
    if isinstance(value, bool | list | dict) or value is None:
        raise ValueError("it holds no text to extract from")
    text = str(value)
    if how.number_after is not None:
        return _number_after(text, how.number_after)
    found = re.search(how.match or "", text)
    if found is None:
        raise ValueError(f"`{how.match}` matches nothing in {_shown(text)}")
    part = found.group(1) if found.re.groups else found.group()
    if part is None:
        raise ValueError(f"the group of `{how.match}` matches nothing in {_shown(text)}")
    return str(part)


def _number_after(text: str, mark: str) -> str:
    _, found, rest = text.rpartition(mark)
    if not found:
        raise ValueError(f"there is no `{mark}` in {_shown(text)}")
    number = _NUMBER.match(rest)
    if number is None:
        raise ValueError(f"no plain number follows `{mark}` in {_shown(text)}")
    sign = "-" if number[1] in ("-", "−") else ""
    return f"{sign}{(number[2] or '0').replace(',', '')}{number[3] or ''}"


def _shown(text: str) -> str:
    """The end of a text, where answers are."""
    line = " ".join(text.split())
    return f"`{line if len(line) <= 60 else '…' + line[-59:]}`"
