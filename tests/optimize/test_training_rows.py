"""Rows of traces: whose they are, what they are prompted with, and how classes are balanced."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answering import RuleBackend, classifier, context_of, engine_of, example, examples, two_hops
from tiny_host import TinyHost, row

from bt_compiler.engine.formats import load_format
from bt_compiler.engine.request import Finished
from bt_compiler.graph import spec_candidate
from bt_compiler.graph.candidate import Candidate, Demo, Prompt
from bt_compiler.graph.program import Program
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.lessons import plan_lessons, validation_examples
from bt_compiler.optimize.rows import (
    MAX_COPIES,
    Row,
    RowWriter,
    balance,
    deduplicate,
    row_writer,
    rows_of,
    without_demos,
)
from bt_compiler.spec.sections import WeightsSection


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


def writer_for(program: Program, candidate: Candidate | None = None, **settings: object) -> RowWriter:
    zero_shot = spec_candidate(program)
    return row_writer(program, candidate or zero_shot, WeightsSection(**settings), zero_shot)


def demo(text: str) -> Demo:
    item = example(text)
    return Demo(inputs=item.inputs, outputs=item.labels, example=item.id)


def test_one_row_a_node_and_visit_prompted_without_demos() -> None:
    program = classifier()
    shown = Prompt(instructions="Look hard.", demos=(demo("g one"), demo("b two")))
    candidate = replace(spec_candidate(program), prompts={"classify": shown})
    trace = engine_of(RuleBackend(rule=lambda asked: "Mood: good")).run(program, candidate, [example("g x")])[0]
    (found,) = rows_of(trace, writer=writer_for(program, candidate), source="self")
    assert (found.module, found.source) == ("classify", "self")
    assert found.completion == "Mood: good"
    assert found.label == '{"mood":"good"}'
    assert [turn.role for turn in found.prompt.messages] == ["system", "user"]
    assert "Say the mood." in found.prompt.messages[0].content


def test_demos_are_kept_on_request_but_never_the_examples_own() -> None:
    program = classifier()
    shown = Prompt(instructions="Look hard.", demos=(demo("g one"), demo("b two")))
    candidate = replace(spec_candidate(program), prompts={"classify": shown})
    writer = writer_for(program, candidate, demos="keep")
    own = example("g one")
    found = writer.row(
        example=own.id,
        module=program.modules[0],
        inputs=own.inputs,
        outputs=own.labels,
        source="gold",
    )
    turns = [turn.content for turn in found.prompt.messages]
    assert "Look hard." in turns[0]
    assert sum("b two" in turn for turn in turns) == 1
    assert sum("g one" in turn for turn in turns) == 1 and "g one" in turns[-1]


def test_a_row_is_what_a_format_writes_and_reads_back() -> None:
    program = classifier()
    item = example("g one")
    found = writer_for(program).row(
        example=item.id,
        module=program.modules[0],
        inputs=item.inputs,
        outputs=item.labels,
        source="gold",
    )
    assert load_format("fields").parse(program.modules[0], found.completion) == item.labels


def test_frozen_modules_give_no_rows() -> None:
    program = classifier()
    frozen = replace(program, modules=(replace(program.modules[0], train=("prompt",)),))
    trace = engine_of(RuleBackend(rule=lambda asked: "Mood: good")).run(
        program, spec_candidate(program), [example("g x")]
    )[0]
    assert rows_of(trace, writer=writer_for(frozen), source="self") == ()


def test_repetitions_go_and_other_completions_stay() -> None:
    kept = deduplicate([row("q", "a"), row("q", "b"), row("q", "a", source="self"), row("q", "a", module="other")])
    assert [(item.module, item.completion, item.source) for item in kept] == [
        ("classify", "a", "gold"),
        ("classify", "b", "gold"),
        ("other", "a", "gold"),
    ]


def test_rare_classes_are_copied_up_to_the_largest() -> None:
    many = [row(f"m{i}", "x", label="x") for i in range(7)]
    some = [row(f"s{i}", "y", label="y") for i in range(3)]
    one = [row("o", "z", label="z")]
    plain = [row("p", "text")]
    found = balance([*many, *some, *one, *plain], seed=1)
    assert found[:12] == (*many, *some, *one, *plain)
    counts = {label: sum(item.label == label for item in found) for label in ("x", "y", "z", None)}
    assert counts == {"x": 7, "y": 7, "z": MAX_COPIES, None: 1}
    copies = [sum(item.id == other.id for item in found) for other in some]
    assert sorted(copies) == [2, 2, 3]
    assert found == balance([*many, *some, *one, *plain], seed=1)


def test_modules_are_balanced_each_for_itself() -> None:
    found = balance([row("a", "x", label="x"), row("b", "y", label="y", module="other")], seed=1)
    assert len(found) == 2


def test_validation_follows_from_ids_and_seed_and_leaves_something_to_learn() -> None:
    ids = [f"e{i}" for i in range(50)]
    held = validation_examples(ids, 0.2, 3)
    assert len(held) == 10
    assert held == validation_examples(list(reversed(ids)), 0.2, 3)
    assert held != validation_examples(ids, 0.2, 4)
    assert validation_examples(["only"], 0.9, 1) == frozenset()
    assert validation_examples([], 0.2, 1) == frozenset()
    copied = [f"{number:016d}{copy}" for number in range(20) for copy in ("", ".2")]
    held = validation_examples(copied, 0.2, 3)
    assert 7 <= len(held) <= 8
    assert not {id[:16] for id in held} & {id[:16] for id in copied if id not in held}


class TellingApart(RuleBackend):
    """Answers each module by its instructions."""

    def poll(self) -> list[Finished]:
        (request, *self.waiting) = self.waiting
        asks = request.prompt.messages[0].content.startswith("Ask.")
        rest, self.waiting = self.waiting, [request]
        self.rule = lambda asked: f"Query: about {asked.value('Text')}" if asks else "Mood: good"
        finished = RuleBackend.poll(self)
        self.waiting = rest
        return finished


def two_hop_rows(journal: Journal) -> dict[str, tuple[Row, ...]]:
    program = two_hops()
    backend = TellingApart(rule=lambda asked: "")
    context = context_of(backend, journal, program=program)
    traces = context.engine.run(program, context.zero_shot, examples("hop", 4))
    assert all(trace.error is None for trace in traces)
    return {trace.example: rows_of(trace, writer=writer_for(program), source="self") for trace in traces}


def test_a_loop_gives_a_row_a_visit(journal: Journal) -> None:
    for found in two_hop_rows(journal).values():
        assert [item.module for item in found] == ["ask", "ask", "classify"]
        assert found[0].prompt != found[1].prompt


def test_no_row_of_one_module_trains_another(journal: Journal) -> None:
    rows = two_hop_rows(journal)
    host = TinyHost()
    hosts = {"ask": host, "classify": host}
    held = frozenset(list(rows)[:1])
    lessons = plan_lessons(two_hops(), rows, held, hosts, WeightsSection(adapters="per_module"), 1)
    assert [lesson.key for lesson in lessons] == ["ask", "classify"]
    for lesson in lessons:
        assert {item.module for item in (*lesson.rows, *lesson.validation)} == {lesson.key}
        assert {item.example for item in lesson.validation} == held
        assert not {item.example for item in lesson.rows} & held
    (shared,) = plan_lessons(two_hops(), rows, held, hosts, WeightsSection(), 1)
    assert {item.module for item in shared.rows} == {"ask", "classify"}
    assert shared.modules == ("ask", "classify")


def test_nothing_is_learnt_from_runs_that_were_not_picked(journal: Journal) -> None:
    program = two_hops()
    context = context_of(TellingApart(rule=lambda asked: ""), journal, program=program)
    (trace,) = context.engine.run(program, context.zero_shot, examples("hop", 1))
    picked = replace(trace, steps=tuple(replace(step, picked=step.visit != (0,)) for step in trace.steps))
    first, second, last = rows_of(trace, writer=writer_for(program), source="self")
    assert rows_of(picked, writer=writer_for(program), source="self") == (second, last) and first != second


def test_a_frozen_prompt_keeps_the_demos_of_the_spec() -> None:
    written = Demo(inputs={"text": "g"}, outputs={"mood": "good"}, origin="written")
    (module,) = classifier().modules
    for train, kept in ((("weights",), (written,)), (("prompt", "weights"), ())):
        program = replace(classifier(), modules=(replace(module, train=train, demos=(written,)),))
        start = spec_candidate(program)
        assert start.prompts[module.name].demos == (written,)
        assert without_demos(program, start)[module.name].demos == kept
