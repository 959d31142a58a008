"""Equality as people mean it, of typed values and of JSON. Knows values, nothing of examples."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn

from bt_compiler.engine.metrics.metric import Compare, quoted


def same_value(output: Any, label: Any) -> bool:
    """Equality as people mean it: texts without outer blanks, `1` as `1.0`, `true` never as `1`; lists in order."""
    if isinstance(output, str) and isinstance(label, str):
        return unicodedata.normalize("NFC", output).strip() == unicodedata.normalize("NFC", label).strip()
    if isinstance(output, bool) or isinstance(label, bool):
        return output is label
    if isinstance(output, list | tuple) and isinstance(label, list | tuple):
        return len(output) == len(label) and all(map(same_value, output, label))
    if isinstance(output, Mapping) and isinstance(label, Mapping):
        return output.keys() == label.keys() and all(same_value(output[key], label[key]) for key in output)
    return bool(output == label)


def accuracy(options: Mapping[str, Any]) -> Compare:
    """The metric `accuracy`."""
    del options

    def compare(output: Any, label: Any) -> float:
        if isinstance(output, str) and isinstance(label, list | tuple):
            raise ValueError(
                "the label is a list and the output a text; `exact_match` takes a list of accepted answers"
            )
        return float(same_value(output, label))

    return compare


def json_equal(options: Mapping[str, Any]) -> Compare:
    """The metric `json`: texts are read as JSON first; the order of keys, blanks and `1` for `1.0` do not count."""
    del options

    def compare(output: Any, label: Any) -> float:
        try:
            expected = _parsed(label)
        except ValueError as error:
            raise ValueError(f"the label {quoted(label)} is not JSON") from error
        try:
            return float(same_value(_parsed(output), expected))
        except ValueError:
            return 0.0  # a model that writes no JSON is wrong, not the example

    return compare


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"`{name}` is not JSON")
