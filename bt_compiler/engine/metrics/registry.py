"""The metric kinds that a spec may name, and their building from a section.

A kind is a function in a file of its own family and one entry here; those of installed packages come after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.metrics.equality import accuracy, json_equal
from bt_compiler.engine.metrics.judge import JudgeMetric
from bt_compiler.engine.metrics.lists import list_overlap, set_overlap
from bt_compiler.engine.metrics.metric import Compare, LabelMetric, Metric, OptionError, Scored, scores
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
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.graph.judges import Judges, judge_key
from bt_compiler.spec.judging import OF_NO_LABEL, OF_NO_OUTPUT
from bt_compiler.spec.sections import MetricSection

if TYPE_CHECKING:
    from bt_compiler.engine.executor import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """The weighted mean of other metrics."""

    kind: str
    parts: tuple[tuple[float, Metric], ...]
    """Weight and metric; weights are above 0."""
    binary: bool = False

    def score_all(self, runs: Sequence[Scored], engine: Engine | None) -> list[float | ExampleError]:
        """See `BatchMetric`. What one part cannot judge, the whole cannot."""
        total = sum(weight for weight, _ in self.parts)
        by_part = [scores(part, runs, engine) for _, part in self.parts]
        return [self._whole(found, total) for found in zip(*by_part, strict=True)]

    def _whole(self, found: Sequence[float | ExampleError], total: float) -> float | ExampleError:
        known = [score for score in found if not isinstance(score, ExampleError)]
        if len(known) < len(found):
            return next(score for score in found if isinstance(score, ExampleError))
        weighed = sum(weight * score for (weight, _), score in zip(self.parts, known, strict=True))
        return min(1.0, weighed / total)


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
    }
)


def metric_kinds() -> tuple[str, ...]:
    """Kinds that are built in, in order."""
    return tuple(sorted([*_KINDS, "judge", "weighted"]))


def build_metric(section: MetricSection, judges: Judges = MappingProxyType({})) -> Metric:
    """The metric that a spec names, with its parts; `judges` are the spec's (`Lowered.judges`).

    Raises SpecError BTC350 (kind), BTC351 (option), BTC352 (value of an option), BTC357 (a plugin that cannot be used).
    """
    if section.kind == "weighted":
        own = _Kind(lambda section: _weighted(section, judges))
    elif section.kind == "judge":
        own = _Kind(lambda section: JudgeMetric(judge=judges[judge_key(section)]), ("call", "in", "score", "rated"))
    else:
        own = None
    kind = own or _KINDS.get(section.kind)
    if kind is None:
        plugins = plugin_kinds()
        if section.kind in plugins:
            return build_plugin(section, plugins[section.kind])
        raise _unknown_kind(section, [*metric_kinds(), *plugins])
    unknown = [name for name in section.options if name not in kind.options]
    if unknown:
        keys = [*kind.options, *_common_keys(section.kind)]
        raise SpecError([_unknown_option(section, name, keys) for name in unknown])
    try:
        return kind.build(section)
    except OptionError as error:
        raise SpecError.of(
            "BTC352", f"option `{error.option}` of metric `{section.kind}` {error.reason}", span=section.span
        ) from error


def _weighted(section: MetricSection, judges: Judges) -> Metric:
    parts = tuple((part.weight, build_metric(part, judges)) for part in section.parts)
    return Weighted(kind=section.kind, parts=parts)


def judge_of(metric: Metric) -> JudgeMetric | None:
    """The judge that a metric is, or the first among its parts."""
    if isinstance(metric, JudgeMetric):
        return metric
    parts = metric.parts if isinstance(metric, Weighted) else ()
    return next((found for _, part in parts if (found := judge_of(part)) is not None), None)


def answer_labels(*metrics: Metric) -> dict[str, str]:
    """Output -> label that holds its right answer, of the outputs that the metrics or their parts compare with one.

    The output's own name where it is among them, else the first. `contains` names none: what an output has to hold
    is no whole answer.
    """
    found: dict[str, str] = {}
    for metric in metrics:
        named = {metric.output: metric.label} if isinstance(metric, LabelMetric) and metric.kind != "contains" else {}
        if isinstance(metric, Weighted):
            named = answer_labels(*(part for _, part in metric.parts))
        found |= {output: label for output, label in named.items() if output not in found or output == label}
    return found


def _unknown_kind(section: MetricSection, known: list[str]) -> SpecError:
    help = did_you_mean(section.kind, known, what="metric kinds")
    if set(section.kind) & set(".:/"):
        help = "code is never named in a spec: an installed package registers it under `bt_compiler.metrics`"
    return SpecError.of("BTC350", f"unknown metric kind `{section.kind}`", span=section.span, help=help)


def _common_keys(kind: str) -> list[str]:
    """What may be written beside `kind` and is no option: kinds of a sort have it in common."""
    keys = ["output"] if kind not in OF_NO_OUTPUT or kind == "weighted" else []
    keys += ["label"] if kind not in OF_NO_LABEL or kind == "weighted" else []
    keys += ["parts"] if kind == "weighted" else []
    return [*keys, "weight"]


def _unknown_option(section: MetricSection, name: str, keys: Sequence[str]) -> Diagnostic:
    return Diagnostic(
        code="BTC351",
        message=f"metric `{section.kind}` has no option `{name}`",
        span=section.span,
        help=did_you_mean(name, keys, what="its keys"),
    )
