"""Plain scalars by YAML 1.2's core schema: `no` is a text, `1e-4` a number, `0o17` fifteen. Knows nothing of places."""

from __future__ import annotations

import math
import re

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_OCTAL = re.compile(r"0o[0-7]+", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_DIGITS = 18
"""Decimal digits of a whole number that fit into 64 bits whatever they are."""


class ScalarError(ValueError):
    """A number that a spec cannot hold; the message is ready for a diagnostic."""


def plain_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar (YAML 1.2.2, section 10.3.2). Raises ScalarError for numbers out of range."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return _whole(text, 10)
    if _OCTAL.fullmatch(text):
        return _whole(text[2:], 8)
    if _HEX.fullmatch(text):
        return _whole(text[2:], 16)
    if _NOT_FINITE.fullmatch(text):
        raise ScalarError(f"`{text}` is no finite number")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ScalarError("a number is too large")
        return number
    return text


def _whole(digits: str, base: int) -> int:
    if len(digits.lstrip("+-").lstrip("0")) > _DIGITS:
        raise ScalarError("a whole number is too large")
    return int(digits, base)
