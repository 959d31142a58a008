"""Metrics: how good a run of the program on one example is. A kind is a function here and an entry in `registry`."""

from bt_compiler.engine.metrics.equality import same_value
from bt_compiler.engine.metrics.fit import misfit
from bt_compiler.engine.metrics.metric import LabelMetric, Metric, Scored, scores
from bt_compiler.engine.metrics.numbers import last_number
from bt_compiler.engine.metrics.plugins import plugin_code, plugin_package
from bt_compiler.engine.metrics.registry import answer_labels, build_metric, judge_of, metric_kinds
from bt_compiler.engine.metrics.texts import normalize_answer

__all__ = [
    "LabelMetric",
    "Metric",
    "Scored",
    "answer_labels",
    "build_metric",
    "judge_of",
    "last_number",
    "metric_kinds",
    "misfit",
    "normalize_answer",
    "plugin_code",
    "plugin_package",
    "same_value",
    "scores",
]
