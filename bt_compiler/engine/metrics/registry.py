"""The metric kinds that a spec may name, and their building from a section.

A kind is a function in a file of its own family and one entry here; those of installed packages come after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.metrics.equality import accuracy, json_equal
from bt_compiler.engine.metrics.lists import list_overlap, set_overlap
from bt_compiler.engine.metrics.metric import Compare, LabelMetric, Metric, OptionError
from bt_compiler.engine.metrics.numbers import numeric
from bt_compiler.engine.metrics.plugins import build_plugin, plugin_kinds
from bt_compiler.engine.metrics.runs import (
    AnswerInPassages,
    Cost,
    Length,
    RetrievalMetric,
    at_most_of,
    by_of,
    count_of,
)
from bt_compiler.engine.metrics.texts import contains, exact_match, f1
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import SpecError
from bt_compiler.spec.sections import MetricSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """The weighted mean of other metrics."""

    kind: str
    parts: tuple[tuple[float, Metric], ...]
    """Weight and metric; weights are above 0."""
    binary: bool = False

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. What one part cannot judge, the whole cannot."""
        total = sum(weight for weight, _ in self.parts)
        return min(1.0, sum(weight * part.score(example, trace) for weight, part in self.parts) / total)


@dataclass(frozen=True, slots=True)
class _Kind:
    build: Callable[[MetricSection], Metric]
    """Raises OptionError."""
    options: tuple[str, ...] = ()


def _comparing(make: Callable[[Mapping[str, Any]], Compare], *options: str, binary: bool = True) -> _Kind:
    def build(section: MetricSection) -> Metric:
        return LabelMetric(
            kind=section.kind,
            output=section.output,
            label=section.label,
            compare=make(section.options),
            binary=binary,
        )

    return _Kind(build, options)


def _retrieval(full: bool) -> _Kind:
    def build(section: MetricSection) -> Metric:
        return RetrievalMetric(kind=section.kind, label=section.label, by=by_of(section.options), full=full)

    return _Kind(build, ("by",))


def _answer_in_passages(section: MetricSection) -> Metric:
    return AnswerInPassages(kind=section.kind, label=section.label)


def _length(section: MetricSection) -> Metric:
    return Length(kind=section.kind, output=section.output, at_most=at_most_of(section.options))


def _cost(section: MetricSection) -> Metric:
    return Cost(kind=section.kind, count=count_of(section.options), at_most=at_most_of(section.options))


def _weighted(section: MetricSection) -> Metric:
    return Weighted(kind=section.kind, parts=tuple((part.weight, build_metric(part)) for part in section.parts))


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "accuracy": _comparing(accuracy),
        "answer_in_passages": _Kind(_answer_in_passages),
        "contains": _comparing(contains),
        "cost": _Kind(_cost, ("at_most", "count")),
        "exact_match": _comparing(exact_match),
        "f1": _comparing(f1, binary=False),
        "json": _comparing(json_equal),
        "length": _Kind(_length, ("at_most",)),
        "list_overlap": _comparing(list_overlap, "measure", binary=False),
        "numeric": _comparing(numeric, "tolerance"),
        "retrieval_full_hit": _retrieval(full=True),
        "retrieval_recall": _retrieval(full=False),
        "set_overlap": _comparing(set_overlap, "measure", binary=False),
        "weighted": _Kind(_weighted),
    }
)


def metric_kinds() -> tuple[str, ...]:
    """Kinds that are built in, in order."""
    return tuple(sorted(_KINDS))


def build_metric(section: MetricSection) -> Metric:
    """The metric that a spec names, with its parts.

    Raises SpecError BTC350 (kind), BTC351 (option), BTC352 (value of an option), BTC357 (a plugin that cannot be used).
    """
    kind = _KINDS.get(section.kind)
    if kind is None:
        plugins = plugin_kinds()
        if section.kind in plugins:
            return build_plugin(section, plugins[section.kind])
        raise _unknown_kind(section, [*_KINDS, *plugins])
    unknown = [name for name in section.options if name not in kind.options]
    if unknown:
        raise SpecError([_unknown_option(section, name, kind.options) for name in unknown])
    try:
        return kind.build(section)
    except OptionError as error:
        raise SpecError.of(
            "BTC352", f"option `{error.option}` of metric `{section.kind}` {error.reason}", span=section.span
        ) from error


def _unknown_kind(section: MetricSection, known: list[str]) -> SpecError:
    help = did_you_mean(section.kind, known, what="metric kinds")
    if set(section.kind) & set(".:/"):
        help = "code is never named in a spec: an installed package registers it under `bt_compiler.metrics`"
    return SpecError.of("BTC350", f"unknown metric kind `{section.kind}`", span=section.span, help=help)


def _unknown_option(section: MetricSection, name: str, allowed: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        code="BTC351",
        message=f"metric `{section.kind}` has no option `{name}`",
        span=section.span,
        help=did_you_mean(name, allowed, what="its options") if allowed else "it takes `output` and `label` alone",
    )
