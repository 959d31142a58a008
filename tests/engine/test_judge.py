"""A module as a metric: what it is given, that it is asked in one batch, and what becomes of a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.compiler.check import checked, label_fields, optional_label_fields
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric, judge_of
from bt_compiler.engine.metrics.judge import on_scale
from bt_compiler.engine.request import Request
from bt_compiler.engine.scoring import evaluate
from bt_compiler.graph import spec_candidate
from bt_compiler.spec.types import Type

SPEC = """
version: 1
models: {{small: writer, large: judge}}
data: {{train: train.jsonl, test: qa.jsonl, {labels}}}
modules:
  answer: {{model: small, signature: "question -> answer"}}
  grade:
    model: large
    signature:
      instructions: Compare.
      inputs: {{question: str, answer: str, gold: str, tone: str}}
      outputs: {{verdict: {type}, why: str}}
metric: {metric}
"""
JUDGE = """
  kind: judge
  call: grade
  in: {question: $question, answer: $answer, gold: $labels.gold, tone: $$strict}
  score: verdict
  rated: {answer: theirs}
"""
WEIGHTED = """
  kind: weighted
  parts:
    - kind: judge
      call: grade
      in: {question: $question, answer: $answer, gold: $labels.gold, tone: x}
      score: verdict
    - {kind: length, output: answer, at_most: 1, weight: 3}
"""
ENUM = "{enum: [bad, fair, good]}"
ROWS = [
    {"question": f"q{n}", "gold": f"a{n}", "theirs": f"a{n}" if n % 2 else "zero", "verdict": ("bad", "good")[n % 2]}
    for n in range(8)
]


class Counting(ScriptedBackend):
    """Keeps how many requests came at once."""

    def __init__(self, function: Callable[[Request], str], **more: Any) -> None:
        super().__init__(function=function, **more)
        self.batches: list[int] = []
        self.texts: list[str] = []

    def submit(self, requests: Sequence[Request]) -> None:
        self.batches.append(len(requests))
        self.texts += [request.prompt.messages[-1].content for request in requests]
        super().submit(requests)


def field(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{label}: ")).partition(": ")[2]


def answering(request: Request) -> str:
    number = field(request.prompt.messages[-1].content, "Question")[1:]
    return f"Answer: {'a' if int(number) < 4 else 'b'}{number}"


def judging(good: str = "good", bad: str = "bad") -> Callable[[Request], str]:
    def judged(request: Request) -> str:
        text = request.prompt.messages[-1].content
        return f"Verdict: {good if field(text, 'Answer') == field(text, 'Gold') else bad}\nWhy: so"

    return judged


def spec(
    folder: Path,
    *,
    metric: str = JUDGE,
    type: str = ENUM,
    rows: Sequence[dict[str, Any]] = ROWS,
    labels: str = "labels: {gold: str}",
) -> Any:
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text("".join(f'{{"question": "x{n}", "gold": "y"}}\n' for n in range(8)))
    path = folder / "judged.yaml"
    path.write_text(SPEC.format(metric=metric, type=type, labels=labels))
    return checked(path, ("optimize.strategy=[]",))


def report(found: Any, judge: Counting) -> tuple[Any, Counting]:
    writer = Counting(answering, identity="writer")
    engine = Engine(backends={"small": writer, "large": judge})
    metric = build_metric(found.sections.metric, found.judges)
    examples = found.splits.test
    scored = evaluate(engine, found.program, spec_candidate(found.program), examples, metric, split="test")
    return scored, writer


def test_the_judge_is_no_part_of_the_program_and_gets_what_its_in_says(tmp_path: Path) -> None:
    found = spec(tmp_path)
    assert [module.name for module in found.program.modules] == ["answer"]
    assert not [item for item in found.warnings if item.code == "BTC207"]
    judge = Counting(judging(), identity="judge")
    scored, writer = report(found, judge)
    assert [score for _, score in scored.scores] == [1.0] * 4 + [0.0] * 4
    assert judge.batches == [8] and writer.batches == [8]
    assert "Question: q5\nAnswer: b5\nGold: a5\nTone: $strict" in judge.texts
    assert scored.calls == 8  # what the program costs, not what judging it does


def test_the_same_run_is_judged_once_and_verdicts_are_kept(tmp_path: Path) -> None:
    found = spec(tmp_path, rows=[{**ROWS[n % 2], "theirs": str(n)} for n in range(6)])
    judge = Counting(judging(), identity="judge")
    report(found, judge)
    assert judge.batches == [2]


def test_a_judge_as_a_part_weighs_as_it_should(tmp_path: Path) -> None:
    scored, _ = report(spec(tmp_path, metric=WEIGHTED), Counting(judging(bad="fair"), identity="judge"))
    assert [score for _, score in scored.scores] == [1.0] * 4 + [pytest.approx(0.875)] * 4


@pytest.mark.parametrize("said", ["7", "many"])
def test_an_answer_outside_the_scale_is_an_error_on_that_example(said: str, tmp_path: Path) -> None:
    rows = [{"question": row["question"], "gold": row["gold"]} for row in ROWS]
    found = spec(tmp_path, type="{type: int, min: 1, max: 5}", rows=rows)
    judge = Counting(judging(good="4", bad=said), identity="judge")
    scored, _ = report(found, judge)
    assert [score for _, score in scored.scores] == [0.75] * 4 + [0.0] * 4
    assert [failure.code for _, failure in scored.failures] == ["BTC364"] * 4
    message = scored.failures[0][1].message
    assert message.startswith("the judge `grade` gave no `verdict` on its scale, 1 to 5: ") and said in message


def test_agreement_with_people_on_outputs_that_the_data_hold(tmp_path: Path) -> None:
    found = spec(tmp_path)
    assert [item.name for item in label_fields(found.program, found.sections, found.judges)] == ["gold"]
    optional = optional_label_fields(found.program, found.sections, found.judges)
    assert {item.name for item in optional} == {"theirs", "verdict", "answer"}
    metric = build_metric(found.sections.metric, found.judges)
    judge = judge_of(metric)
    assert judge is not None
    engine = Engine(backends={"large": Counting(judging(bad="fair"), identity="judge")})
    agreed = judge.agreement(found.splits.test, engine)
    assert agreed is not None
    assert (agreed.examples, agreed.failed, agreed.rated) == (8, 0, 8)
    assert (agreed.mean, agreed.equal, agreed.difference, agreed.kappa) == (0.75, 0.5, 0.25, pytest.approx(1 / 3))
    bare = [replace(one, labels={"gold": one.labels["gold"]}) for one in found.splits.test]
    assert judge.agreement(bare, engine) is None
    unrated = [replace(one, labels={key: one.labels[key] for key in ("gold", "theirs")}) for one in found.splits.test]
    partly = judge.agreement(unrated, engine)
    odd = [replace(one, labels={**one.labels, "verdict": "best"}) for one in found.splits.test]
    strange = judge.agreement(odd, engine)
    assert strange is not None and (strange.rated, strange.off_scale) == (0, 8)
    assert partly is not None and (partly.mean, partly.rated, partly.equal, partly.kappa) == (0.75, 0, None, None)


def test_rows_without_an_output_or_a_rating_are_left_out(tmp_path: Path) -> None:
    labels = "labels: {gold: str, theirs: str | null, verdict: str | null}"
    rows = [dict(row) for row in ROWS]
    for number in range(4):
        rows[number]["theirs"] = None
    for number in range(2, 6):
        del rows[number]["verdict"]
    found = spec(tmp_path, rows=rows, labels=labels)
    judge = judge_of(build_metric(found.sections.metric, found.judges))
    assert judge is not None
    asked = Counting(judging(bad="fair"), identity="judge")
    agreed = judge.agreement(found.splits.test, Engine(backends={"large": asked}))
    assert agreed is not None
    assert (agreed.examples, agreed.rated, agreed.off_scale) == (4, 2, 0) and asked.batches == [4]
    assert (agreed.mean, agreed.equal) == (0.75, 0.5)
    assert found.rated(next(iter(found.judges.values()))) == 4


def test_without_rated_a_null_rating_is_none(tmp_path: Path) -> None:
    rows = [{**row, "answer": row["gold"], "verdict": row["verdict"] if n < 3 else None} for n, row in enumerate(ROWS)]
    labels = "labels: {gold: str, verdict: str | null}"
    found = spec(tmp_path, metric=JUDGE.replace("  rated: {answer: theirs}\n", ""), rows=rows, labels=labels)
    judge = judge_of(build_metric(found.sections.metric, found.judges))
    assert judge is not None
    rated = judge.agreement(found.splits.test, Engine(backends={"large": Counting(judging(), identity="judge")}))
    assert rated is not None and (rated.examples, rated.rated, rated.off_scale) == (3, 3, 0)


def test_right_answers_that_nobody_rated_are_not_judged(tmp_path: Path) -> None:
    rows = [{**row, "answer": row["gold"]} for row in ROWS]
    found = spec(tmp_path, metric=JUDGE.replace("  rated: {answer: theirs}\n", ""), rows=rows)
    judge = judge_of(build_metric(found.sections.metric, found.judges))
    assert judge is not None
    engine = Engine(backends={"large": Counting(judging(), identity="judge")})
    rated = judge.agreement(found.splits.test, engine)
    assert rated is not None and rated.rated == rated.examples == 8
    bare = [replace(one, labels={name: one.labels[name] for name in ("gold", "answer")}) for one in found.splits.test]
    assert judge.agreement(bare, engine) is None


def test_scales() -> None:
    stars = Type(kind="int", minimum=1, maximum=5)
    assert [on_scale(value, stars) for value in (1, 3, 5, 6, 0, True, "3")] == [0, 0.5, 1, None, None, None, None]
    grades = Type(kind="enum", values=("bad", "fair", "good"))
    assert [on_scale(value, grades) for value in ("bad", "fair", "good", "best")] == [0, 0.5, 1, None]
    assert [on_scale(value, Type(kind="bool")) for value in (False, True, 1)] == [0, 1, None]
