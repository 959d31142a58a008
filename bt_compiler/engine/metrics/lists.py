"""Comparing lists: how much of one is in the other, without and with their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.metrics.equality import same_value
from bt_compiler.engine.metrics.metric import Compare, OptionError, type_name

Measure = Literal["f1", "precision", "recall", "jaccard"]
_MEASURES: tuple[Measure, ...] = ("f1", "precision", "recall", "jaccard")


def set_overlap(options: Mapping[str, Any]) -> Compare:
    """The metric `set_overlap`: neither order nor repetition counts."""
    measure = _measure(options)

    def compare(output: Any, label: Any) -> float:
        given, gold = _distinct(_list(output, "output")), _distinct(_list(label, "label"))
        shared = sum(any(same_value(one, other) for other in gold) for one in given)
        return _share(measure, shared, len(given), len(gold))

    return compare


def list_overlap(options: Mapping[str, Any]) -> Compare:
    """The metric `list_overlap`: the longest common subsequence, so that order and repetition count (ROUGE-L's)."""
    measure = _measure(options)

    def compare(output: Any, label: Any) -> float:
        given, gold = _list(output, "output"), _list(label, "label")
        return _share(measure, _common_subsequence(given, gold), len(given), len(gold))

    return compare


def _measure(options: Mapping[str, Any]) -> Measure:
    written = options.get("measure", "f1")
    for known in _MEASURES:
        if written == known:
            return known
    raise OptionError("measure", f"does not know `{written}`: {did_you_mean(str(written), _MEASURES, what='measures')}")


def _share(measure: Measure, shared: int, given: int, gold: int) -> float:
    """0 to 1; two empty lists are equal."""
    if not given and not gold:
        return 1.0
    whole = {"precision": given, "recall": gold, "jaccard": given + gold - shared, "f1": (given + gold) / 2}[measure]
    return shared / whole if whole else 0.0


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ValueError(f"the {what} is of type `{type_name(value)}`, not a list")
    return list(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(same_value(value, other) for other in found):
            found.append(value)
    return found


def _common_subsequence(first: Sequence[Any], second: Sequence[Any]) -> int:
    lengths = [0] * (len(second) + 1)
    for one in first:
        before = 0
        for place, other in enumerate(second, 1):
            above = lengths[place]
            lengths[place] = before + 1 if same_value(one, other) else max(above, lengths[place - 1])
            before = above
    return lengths[-1]
