"""Values from CSV text or JSON to a declared type. Knows nothing of files, rows or columns."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.spec.types import SCORE, Type, is_passage, show_type, takes_null

_INT = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def convert(value: Any, t: Type) -> Any:
    """`value` as `t` has it: text becomes numbers, lists and objects where `t` wants them, integers become floats,
    and what an object may leave out is there: null, or the score 0 of a passage.

    Raises ValueError with a message for people (no position: the caller knows file and line).
    """
    return _CONVERTERS[t.kind](value, t)


def convert_text(text: str, t: Type) -> Any:
    """As `convert` where all values are written without quotes, as in a cell or a line: `5` is a number in a union that
    takes numbers and texts, and `007` stays a text, for no number is written so. Raises ValueError.
    """
    if t.kind == "union":
        try:
            literal = json.loads(text, parse_constant=lambda name: name)
            found = text if isinstance(literal, str) else convert(literal, t)
        except (ValueError, RecursionError):
            found = text
        if not isinstance(found, str):
            return found
    return convert(text, t)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = value if len(value) <= 40 else value[:39] + "…"
        return f"`{text}`" if text.strip() else "an empty text"
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence):
        return "a list"
    if isinstance(value, int | float):
        return f"`{json.dumps(value)[:40]}`"
    return f"a {type(value).__name__}, `{str(value)[:40]}`,"


def _refuse(value: Any, t: Type, why: str = "") -> ValueError:
    return ValueError(f"{_shown(value)} is not `{show_type(t)}`{why}")


def _str(value: Any, t: Type) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise _refuse(value, t)


def _int(value: Any, t: Type) -> int:
    if isinstance(value, str) and _INT.fullmatch(value.strip()):
        number = int(value.strip().split(".")[0])
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    else:
        raise _refuse(value, t)
    _bounded(number, t)
    return number


def _float(value: Any, t: Type) -> float:
    if isinstance(value, str) and _FLOAT.fullmatch(value.strip()):
        number = float(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError as error:
            raise _refuse(value, t, ": too large") from error
    else:
        raise _refuse(value, t)
    if not math.isfinite(number):
        raise _refuse(value, t, ": not a finite number")
    _bounded(number, t)
    return number


def _bounded(number: float, t: Type) -> None:
    if t.minimum is not None and number < t.minimum:
        raise ValueError(f"`{number}` is less than {t.minimum}")
    if t.maximum is not None and number > t.maximum:
        raise ValueError(f"`{number}` is more than {t.maximum}")


def _bool(value: Any, t: Type) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _BOOLS:
        return _BOOLS[value.strip().lower()]
    raise _refuse(value, t)


def _null(value: Any, t: Type) -> None:
    if value is not None and value != "":
        raise _refuse(value, t)


def _enum(value: Any, t: Type) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        for candidate in (text, text.strip()):
            if candidate in t.values:
                return candidate
        close = did_you_mean(text.strip(), t.values, what="allowed")
        raise ValueError(f"{_shown(value)} is not one of the values of `{show_type(t)}`; {close}")
    raise _refuse(value, t)


def _list(value: Any, t: Type) -> list[Any]:
    items = _json_of(value, t) if isinstance(value, str) else value
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
        raise _refuse(value, t)
    assert t.item is not None
    if t.minimum is not None and len(items) < t.minimum:
        raise ValueError(f"a list of {len(items)} is shorter than {t.minimum:g}")
    if t.maximum is not None and len(items) > t.maximum:
        raise ValueError(f"a list of {len(items)} is longer than {t.maximum:g}")
    converted = []
    for place, item in enumerate(items):
        try:
            converted.append(convert(item, t.item))
        except ValueError as error:
            raise ValueError(f"element {place + 1}: {error}") from error
    return converted


def _object(value: Any, t: Type) -> dict[str, Any]:
    given = _json_of(value, t) if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise _refuse(value, t)
    if is_passage(t):
        given = {SCORE: 0.0, **given}
    extra = [key for key in given if key not in {field.name for field in t.fields}]
    if extra:
        raise ValueError(f"`{show_type(t)}` has no field `{extra[0]}`")
    converted = {}
    for field in t.fields:
        if field.name not in given and not takes_null(field.type):
            raise ValueError(f"`{show_type(t)}` lacks its field `{field.name}`")
        try:
            converted[field.name] = convert(given.get(field.name), field.type)
        except ValueError as error:
            raise ValueError(f"field `{field.name}`: {error}") from error
    return converted


def _json_of(text: str, t: Type) -> Any:
    try:
        return json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError) as error:
        raise _refuse(text, t, ": written as text it has to be JSON") from error


def _union(value: Any, t: Type) -> Any:
    if value is None and takes_null(t):
        return None
    for option in sorted(t.options, key=lambda one: not _at_home(value, one)):
        try:
            return convert(value, option)
        except ValueError:
            continue
    others = [option for option in t.options if option.kind != "null"]
    if len(others) == 1:
        return convert(value, others[0])
    raise _refuse(value, t)


def _at_home(value: Any, t: Type) -> bool:
    """Whether `value` is of `t` without conversion of its kind: an int stays one in `float | int`."""
    homes: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "enum": (str,),
        "int": (int,),
        "float": (float,),
        "bool": (bool,),
        "list": (list, tuple),
        "object": (dict,),
    }
    if isinstance(value, bool):
        return t.kind == "bool"
    return isinstance(value, homes.get(t.kind, ()))


_CONVERTERS: Mapping[str, Callable[[Any, Type], Any]] = {
    "str": _str,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "null": _null,
    "enum": _enum,
    "list": _list,
    "object": _object,
    "union": _union,
}
