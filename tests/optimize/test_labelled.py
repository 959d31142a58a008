"""Labels that `among` does not leave to an output for its own inputs are neither rows nor demos, and are counted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answering import Asked, RuleBackend, classifier, context_of

from bt_compiler.data.example import Example, make_example
from bt_compiler.engine.progress import Silent
from bt_compiler.graph.program import Binding, Program, Ref
from bt_compiler.optimize.bootstrap import labelled
from bt_compiler.optimize.cold_start import collect, start_of
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.step import StepContext
from bt_compiler.spec.sections import OptimizeSection, WeightsSection
from bt_compiler.spec.types import STR, Field, Type

OPTIONS = Field(name="options", type=Type(kind="list", item=STR))
ONE = Type(kind="str", among="options")
SOME = Type(kind="list", item=STR, among="options", minimum=0)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def choosing(type: Type, kind: str = "predict") -> Program:
    """`classify`: options -> mood, which is among them."""
    program = classifier()
    (module,), (call,) = program.modules, program.nodes
    signature = replace(module.signature, inputs=(OPTIONS,), outputs=(Field(name="mood", type=type),))
    module = replace(module, kind=kind, signature=signature)
    given = Binding(name="options", value=Ref(step=None, field="options"), type=OPTIONS.type)
    return replace(
        program,
        inputs=(OPTIONS,),
        modules=(module,),
        nodes=(replace(call, inputs=(given,), outputs=module.outputs),),
        out=(replace(program.out[0], type=type),),
    )


def rows(*labels: object, options: tuple[str, ...] = ("red ", "blue")) -> tuple[Example, ...]:
    return tuple(make_example({"options": [*options, f"x{n}"]}, {"mood": label}) for n, label in enumerate(labels))


def learning(journal: Journal, program: Program, train: tuple[Example, ...], source: str) -> tuple[StepContext, Told]:
    def reasons(asked: Asked) -> str:
        if "Right mood:" in asked.text:
            return "Reasoning: by its looks"
        return "Mood: blue"

    settings = OptimizeSection(weights=WeightsSection(sources=(source,), samples=1))
    context = context_of(RuleBackend(rule=reasons), journal, program=program, train=train, settings=settings)
    told = Told()
    return replace(context, progress=told), told


@pytest.mark.parametrize(
    ("type", "labels", "taught"),
    [
        (ONE, ("red", "Red", "green", ["pink", "blue"]), ["Mood: red", "Mood: blue"]),
        (SOME, (["red "], ["red", "green"], [], ["x1"]), ['Mood: ["red"]', "Mood: []"]),
    ],
)
def test_a_label_that_was_not_given_is_no_row_and_no_demo(
    journal: Journal, type: Type, labels: tuple[object, ...], taught: list[str]
) -> None:
    context, told = learning(journal, choosing(type), rows(*labels), "gold")
    found = collect(start_of(context, context.zero_shot))
    assert [row.completion for own in found.rows.values() for row in own] == taught
    assert [tuple(tried) for tried in found.tried] == [("gold", 4, 2)]
    left_out = "labels of `classify`: 2 of 4 left out, for `mood` is not among `options` there"
    assert told.lines == [left_out, "rows from `gold`: 2 of 4 examples"]
    demos = labelled(context, context.train, ())["classify"]
    assert list(demos) == list(found.rows)
    assert told.lines[2:] == [left_out]


def test_nothing_is_said_where_every_label_was_given(journal: Journal) -> None:
    context, told = learning(journal, choosing(ONE), rows("red", "blue"), "gold")
    collect(start_of(context, context.zero_shot))
    assert told.lines == ["rows from `gold`: 2 of 2 examples"]


def test_nothing_can_be_taught_of_a_choice_without_options(journal: Journal) -> None:
    train = (make_example({"options": []}, {"mood": "blue"}),)
    context, told = learning(journal, choosing(ONE), train, "gold")
    assert not collect(start_of(context, context.zero_shot)).rows
    assert told.lines[0].startswith("labels of `classify`: 1 of 1 left out")


def test_hinted_rows_are_of_labels_that_were_given(journal: Journal) -> None:
    context, told = learning(journal, choosing(ONE, "chain_of_thought"), rows("blue", "green"), "hinted")
    found = collect(start_of(context, context.zero_shot))
    assert [row.completion for own in found.rows.values() for row in own] == ["Reasoning: by its looks\nMood: blue"]
    assert "labels of `classify`: 1 of 2 left out, for `mood` is not among `options` there" in told.lines
