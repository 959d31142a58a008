"""Scores traces and sums them up: a candidate on a split becomes a `Report`.

Knows metrics and traces; how a program runs is the executor's. A failed example scores 0 and is listed as a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bt_compiler.data.example import Example
from bt_compiler.engine.causes import tool_failures
from bt_compiler.engine.metrics import Metric, Scored, scores
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.statistics import interval_of, mean_of
from bt_compiler.engine.trace import Failure, Report, Trace
from bt_compiler.errors import ExampleError
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Program

if TYPE_CHECKING:
    from bt_compiler.engine.executor import Engine


def score_traces(
    traces: Sequence[Trace], examples: Sequence[Example], metric: Metric, engine: Engine | None = None
) -> list[Trace]:
    """The traces, in their order, with `score` set: the metric's judgement, 0 for a failed run.

    A trace that the metric cannot judge gets the reason as its error and a 0. `engine` is what a judge asks its model
    on. Raises KeyError for a trace of an example that is not among `examples`, and BackendError.
    """
    by_id = {example.id: example for example in examples}
    runs = [Scored(by_id[trace.example], trace) for trace in traces if trace.error is None]
    found = iter(scores(metric, runs, engine))
    return [replace(trace, score=0.0) if trace.error is not None else _scored(trace, next(found)) for trace in traces]


def _scored(trace: Trace, score: float | ExampleError) -> Trace:
    if isinstance(score, ExampleError):
        return replace(trace, score=0.0, error=Failure(code=score.code, message=score.message))
    return replace(trace, score=score)


def evaluate(
    engine: Engine,
    program: Program,
    candidate: Candidate,
    examples: Sequence[Example],
    metric: Metric,
    *,
    split: str,
    seed: int = 0,
    leave_own_demo_out: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Runs the candidate once on every example and scores it. `progress` counts examples.

    `leave_own_demo_out`, as of `Engine.run`: for examples that demos of the candidate may have come from.
    """
    (report,) = evaluate_together(
        engine,
        program,
        [candidate],
        examples,
        metric,
        split=split,
        seed=seed,
        leave_own_demo_out=leave_own_demo_out,
        progress=progress,
        clock=clock,
    )
    return report


def evaluate_together(
    engine: Engine,
    program: Program,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    metric: Metric,
    *,
    split: str,
    seed: int = 0,
    leave_own_demo_out: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Report]:
    """A report of each candidate, all run at once so that batches are full; each gets its share of the seconds."""
    start = clock()
    first, *others = candidates
    traces = engine.run(
        program,
        first,
        examples,
        beside=others,
        seed=seed,
        leave_own_demo_out=leave_own_demo_out,
        progress=progress,
    )
    scored = score_traces(traces, examples, metric, engine)
    seconds, size = (clock() - start) / len(candidates), len(examples)
    return [
        report_of(
            scored[number * size : (number + 1) * size],
            candidate=candidate.id,
            split=split,
            binary=metric.binary,
            seconds=seconds,
        )
        for number, candidate in enumerate(candidates)
    ]


def report_of(traces: Sequence[Trace], *, candidate: str, split: str, binary: bool, seconds: float = 0.0) -> Report:
    """Sums up scored traces, one an example, in the order of the split. Raises ValueError for an unscored trace.

    `calls` counts every completion, cached ones too, and tokens are those of all calls, so that both say what the
    program costs and not what the cache happened to hold.
    """
    found: list[tuple[str, float]] = []
    for trace in traces:
        if trace.score is None:
            raise ValueError(f"the trace of example {trace.example} has no score")
        found.append((trace.example, trace.score))
    values = [score for _, score in found]
    completions = [completion for trace in traces for step in trace.steps for completion in step.completions]
    return Report(
        candidate=candidate,
        split=split,
        scores=tuple(found),
        mean=mean_of(values),
        interval=interval_of(values, binary),
        failures=tuple((trace.example, trace.error) for trace in traces if trace.error is not None),
        tool_errors=sum(step.error is not None for trace in traces for step in trace.steps),
        tool_failures=tool_failures(traces),
        calls=len(completions),
        cached_calls=sum(completion.cached for completion in completions),
        prompt_tokens=sum(completion.prompt_tokens for completion in completions),
        completion_tokens=sum(completion.completion_tokens for completion in completions),
        seconds=seconds,
        traces=tuple(traces),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """How often each class was answered for each true class."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """`counts[i][j]`: examples of class i answered with class j."""
    failed: tuple[int, ...]
    """Examples of class i whose run failed."""


def confusion(
    report: Report, examples: Sequence[Example], output: str, label: str, classes: Sequence[str] = ()
) -> Confusion:
    """Confusion counts of an enum output, from the report's traces.

    `classes`: the enum's values in the order of the spec; others that occur are put after them in alphabetical order.
    """
    labels = {example.id: str(_value(example.labels, label)) for example in examples}
    answers = [
        (labels[trace.example], None if trace.outputs is None else str(_value(trace.outputs, output)))
        for trace in report.traces
    ]
    seen = {name for pair in answers for name in pair if name is not None}
    names = (*classes, *sorted(seen.difference(classes)))
    return Confusion(
        classes=names,
        counts=tuple(tuple(answers.count((true, given)) for given in names) for true in names),
        failed=tuple(answers.count((true, None)) for true in names),
    )


def _value(values: Mapping[str, Any], name: str) -> Any:
    value = values[name]
    return value.strip() if isinstance(value, str) else value
