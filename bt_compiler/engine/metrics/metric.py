"""What a metric is, and the one that compares an output with a label.

A metric sees an example and a trace and nothing of batches, models or means. What it cannot judge (no label, a label of
the wrong kind) is an `ExampleError` on that example, never a silent 0; a wrong answer is a plain 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from bt_compiler.data.example import Example
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError

if TYPE_CHECKING:
    from bt_compiler.engine.executor import Engine

Compare = Callable[[Any, Any], float]
"""(output, label) -> score; raises ValueError with a readable message where the two cannot be compared."""


class Scored(NamedTuple):
    """A run that waits for its score, and what it is a run of."""

    example: Example
    trace: Trace


class Metric(Protocol):
    """Judges runs of the program; every one is a `RunMetric` or a `BatchMetric`."""

    @property
    def kind(self) -> str:
        """Registered name, as in `accuracy`."""
        ...

    @property
    def binary(self) -> bool:
        """Whether scores are 0 or 1 alone; decides which interval a mean gets."""
        ...


@runtime_checkable
class RunMetric(Metric, Protocol):
    """Judges one run at a time."""

    def score(self, example: Example, trace: Trace) -> float:
        """Score in [0, 1] of a trace that did not fail. Raises `ExampleError` where it cannot be judged."""
        ...


@runtime_checkable
class BatchMetric(Metric, Protocol):
    """Judges many runs at once, for it asks models."""

    def score_all(self, runs: Sequence[Scored], engine: Engine | None) -> list[float | ExampleError]:
        """A score for each run, or why it cannot be judged; `engine` may be None where no model is asked. Raises
        BackendError, and RuntimeError (a bug) for want of an engine.
        """
        ...


def scores(metric: Metric, runs: Sequence[Scored], engine: Engine | None) -> list[float | ExampleError]:
    """What a metric says of each run, in [0, 1]. `engine` may be None where no metric asks a model."""
    if isinstance(metric, BatchMetric):
        found = metric.score_all(runs, engine)
    else:
        assert isinstance(metric, RunMetric)
        found = [_one(metric, run) for run in runs]
    return [_within(score, metric) for score in found]


def _one(metric: RunMetric, run: Scored) -> float | ExampleError:
    try:
        return float(metric.score(run.example, run.trace))
    except ExampleError as error:
        return error


def _within(score: float | ExampleError, metric: Metric) -> float | ExampleError:
    if isinstance(score, ExampleError) or 0.0 <= score <= 1.0:
        return score
    return ExampleError("BTC355", f"metric `{metric.kind}` gave {score}, scores lie between 0 and 1")


class OptionError(ValueError):
    """An option of a metric has a value that cannot be used: its name, and words that follow it."""

    def __init__(self, option: str, reason: str) -> None:
        self.option = option
        self.reason = reason
        super().__init__(f"`{option}` {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMetric:
    """A metric that compares one output with one label: which values, and how."""

    kind: str
    output: str
    label: str
    compare: Compare
    binary: bool = True

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. Raises `ExampleError` BTC353 (no such output or label) and BTC354 (cannot be compared)."""
        output, label = output_of(trace, self.output), label_of(example, self.label)
        try:
            return self.compare(output, label)
        except ValueError as error:
            raise ExampleError("BTC354", f"metric `{self.kind}` cannot judge `{self.output}`: {error}") from error


def output_of(trace: Trace, name: str) -> Any:
    """One output of a run. Raises `ExampleError` BTC353 where the run has none of that name."""
    if trace.outputs is None or name not in trace.outputs:
        raise ExampleError("BTC353", f"the run gives no output `{name}`")
    return trace.outputs[name]


def label_of(example: Example, name: str) -> Any:
    """One label of an example. Raises `ExampleError` BTC353 where the example has none of that name."""
    if name not in example.labels:
        raise ExampleError("BTC353", f"the example has no label `{name}`")
    return example.labels[name]


def type_name(value: Any) -> str:
    """The kind of a value as a spec writes it."""
    names = {str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}
    if isinstance(value, Mapping):
        return "object"
    return names.get(type(value), "list" if isinstance(value, list | tuple) else "object")


def quoted(value: Any) -> str:
    """A value in a message, cut short."""
    text = str(value)
    return f"`{text if len(text) <= 60 else text[:57] + '…'}`"
