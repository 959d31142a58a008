from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from bt_compiler.data.example import Example
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import Completion
from bt_compiler.engine.scoring import confusion, evaluate, report_of, score_traces
from bt_compiler.engine.statistics import wilson
from bt_compiler.engine.trace import Failure, Step, Trace
from bt_compiler.graph.candidate import Candidate
from bt_compiler.graph.program import Program
from bt_compiler.spec.sections import MetricSection

ACCURACY = build_metric(MetricSection(kind="accuracy", output="answer", label="gold"))
NUMERIC = build_metric(MetricSection(kind="numeric", output="answer", label="gold"))
PROGRAM = Program(name="p", inputs=(), nodes=(), out=(), modules=(), retrievers=())
CANDIDATE = Candidate(id="zero-shot", prompts={})


def example(name: str, gold: Any) -> Example:
    return Example(id=name, inputs={}, labels={"gold": gold})


def trace(name: str, answer: Any = None, *, error: Failure | None = None, calls: int = 0) -> Trace:
    steps = tuple(
        Step(
            node=f"n{number}",
            inputs={},
            completion=Completion(
                text="x", finish="stop", prompt_tokens=10, completion_tokens=3, cached=number % 2 == 0
            ),
        )
        for number in range(calls)
    )
    return Trace(example=name, steps=steps, outputs=None if error else {"answer": answer}, error=error)


FAILED = Failure(code="BTC521", message="prompt is too long", node="final")


def test_failed_runs_score_zero_and_keep_their_reason() -> None:
    examples = [example("a", "x"), example("b", "x"), example("c", "x")]
    scored = score_traces([trace("c", "y"), trace("a", "x"), trace("b", error=FAILED)], examples, ACCURACY)
    assert [(item.example, item.score, item.error) for item in scored] == [
        ("c", 0.0, None),
        ("a", 1.0, None),
        ("b", 0.0, FAILED),
    ]


def test_what_the_metric_cannot_judge_shows_in_the_failures() -> None:
    scored = score_traces([trace("a", "3"), trace("b", "3")], [example("a", 3), example("b", "none")], NUMERIC)
    report = report_of(scored, candidate="c", split="dev", binary=True)
    assert report.scores == (("a", 1.0), ("b", 0.0))
    ((name, failure),) = report.failures
    assert (name, failure.code) == ("b", "BTC354")


@dataclass(frozen=True, kw_only=True)
class Wild:
    kind: str = "wild"
    binary: bool = False

    def score(self, example: Example, trace: Trace) -> float:
        return float(example.labels["gold"])


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_a_score_outside_the_range_is_a_failure(value: float) -> None:
    (scored,) = score_traces([trace("a", "x")], [example("a", value)], Wild())
    assert scored.score == 0.0
    assert scored.error is not None and scored.error.code == "BTC355"


class RecordedEngine:
    """Gives traces it was made with, in the order of the examples."""

    def __init__(self, *traces: Trace) -> None:
        self.traces = {item.example: item for item in traces}
        self.seeds: list[int] = []

    def run(
        self,
        program: Program,
        candidate: Candidate,
        examples: list[Example],
        *,
        beside: list[Candidate],
        seed: int,
        leave_own_demo_out: bool,
        progress: Progress,
    ) -> list[Trace]:
        assert not leave_own_demo_out
        self.seeds.append(seed)
        return [self.traces[item.id] for _ in (candidate, *beside) for item in examples]


def test_evaluate_sums_up_a_run() -> None:
    engine = RecordedEngine(trace("a", "x", calls=3), trace("b", error=FAILED, calls=1))
    ticks = iter([100.0, 102.5])
    examples = [example("b", "x"), example("a", "x"), example("a", "x")]
    report = evaluate(
        engine,  # type: ignore[arg-type]
        PROGRAM,
        CANDIDATE,
        examples,
        ACCURACY,
        split="dev",
        seed=7,
        clock=lambda: next(ticks),
    )
    assert engine.seeds == [7]
    assert (report.candidate, report.split, report.seconds) == ("zero-shot", "dev", 2.5)
    assert report.scores == (("b", 0.0), ("a", 1.0), ("a", 1.0))  # equal rows keep their weight
    assert report.mean == pytest.approx(2 / 3)
    assert report.interval == wilson(2, 3)
    assert report.failures == (("b", FAILED),)
    assert (report.calls, report.cached_calls, report.prompt_tokens, report.completion_tokens) == (7, 5, 70, 21)


def test_a_report_of_nothing_knows_nothing() -> None:
    report = report_of([], candidate="c", split="test", binary=True)
    assert (report.mean, report.interval.low, report.interval.high) == (0.0, 0.0, 1.0)


def test_a_report_refuses_unscored_traces() -> None:
    with pytest.raises(ValueError, match="has no score"):
        report_of([trace("a", "x")], candidate="c", split="dev", binary=True)


def test_confusion_keeps_the_order_of_the_spec_and_counts_failures() -> None:
    examples = [example("a", "cat"), example("b", "cat"), example("c", "dog"), example("d", "dog"), example("e", "cat")]
    traces = [trace("a", "cat"), trace("b", "dog"), trace("c", "dog"), trace("d", error=FAILED), trace("e", "emu")]
    report = report_of(score_traces(traces, examples, ACCURACY), candidate="c", split="dev", binary=True)
    table = confusion(report, examples, "answer", "gold", classes=("dog", "cat", "fox"))
    assert table.classes == ("dog", "cat", "fox", "emu")
    assert table.counts == ((1, 0, 0, 0), (1, 1, 0, 1), (0, 0, 0, 0), (0, 0, 0, 0))
    assert table.failed == (1, 0, 0, 0)
