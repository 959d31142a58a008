"""Where rows come from when the program solves too little: order, acceptance and what each source says of itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answering import (
    MOOD,
    Asked,
    EchoRetriever,
    RuleBackend,
    classifier,
    coin,
    context_of,
    examples,
    truth,
    two_hops,
    with_adapter,
    wrong,
)

from bt_compiler.data.example import Example
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.metrics import build_metric
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import Candidate, Demo, DemoOrigin
from bt_compiler.graph.program import Binding, Program, Ref
from bt_compiler.optimize.bootstrap import labelled
from bt_compiler.optimize.cold_start import Collected, Unseen, collect, least_runs, start_of, unseen_values
from bt_compiler.optimize.hints import contains_label
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.step import StepContext
from bt_compiler.spec.sections import MetricSection, OptimizeSection, WeightsSection
from bt_compiler.spec.types import NULL, STR, Field, Type

TRAIN = examples("train", 12)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


def always_good(asked: Asked) -> str:
    return "Mood: good"


def settings(*sources: str, **more: object) -> OptimizeSection:
    return OptimizeSection(weights=WeightsSection(sources=sources, **more))


def reasoning_program() -> Program:
    program = classifier()
    return replace(program, modules=(replace(program.modules[0], kind="chain_of_thought"),))


def collected(context: StepContext, candidate: Candidate | None = None) -> Collected:
    return collect(start_of(context, candidate or context.zero_shot))


def sources_of(found: Collected) -> dict[str, set[str]]:
    return {example: {row.source for row in rows} for example, rows in found.rows.items()}


def test_each_source_is_asked_for_what_is_unsolved_so_far(journal: Journal) -> None:
    context = context_of(RuleBackend(rule=always_good), journal, train=TRAIN, settings=settings("self", "gold"))
    found = collected(context)
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 6), ("gold", 6, 6)]
    assert sources_of(found) == {item.id: {"self" if item.labels["mood"] == "good" else "gold"} for item in TRAIN}
    assert list(found.rows) == [item.id for item in TRAIN]


class TellingApart(RuleBackend):
    """The two hops of `two_hops`: the same query always, and a wrong mood."""

    def poll(self) -> list[object]:
        (request, *rest) = self.waiting
        asks = request.prompt.messages[0].content.startswith("Ask.")
        self.waiting = [request]
        self.rule = lambda asked: "Query: clouds" if asks else f"Mood: {wrong(asked.value('Text'))}"
        finished = RuleBackend.poll(self)
        self.waiting = rest
        return finished


def test_the_programs_own_runs_are_made_and_judged_once(journal: Journal) -> None:
    """Labels of `classify`, whose context comes from inside the program, start from the runs that `self` asked for."""

    class Counting:
        kind, binary = "counting", True

        def __init__(self) -> None:
            self.judged: list[str] = []

        def score(self, example: Example, trace: Trace) -> float:
            self.judged.append(trace.example)
            return float(truth(example.inputs["text"]) == "good")

    backend, accept = TellingApart(rule=always_good), Counting()
    context = context_of(backend, journal, program=two_hops(), train=TRAIN, settings=settings("self", "gold"))
    start = start_of(replace(context, accept=accept), context.zero_shot)
    found = collect(start)
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 6), ("gold", 6, 6)]
    calls = len(backend.asked)
    start.runs.judged(TRAIN)
    assert len(backend.asked) == calls and accept.judged == [item.id for item in TRAIN]
    assert start.runs.fit("what is there", TRAIN)


def test_the_order_is_that_of_the_spec(journal: Journal) -> None:
    backend = RuleBackend(rule=always_good)
    found = collected(context_of(backend, journal, train=TRAIN, settings=settings("gold", "self")))
    assert [tuple(tried) for tried in found.tried] == [("gold", 12, 12)]
    assert not backend.asked


def test_answers_that_no_row_shows_are_told(journal: Journal) -> None:
    context = context_of(RuleBackend(rule=always_good), journal, train=TRAIN, settings=settings("self"))
    rows = collected(context).rows
    assert unseen_values(context, rows) == [Unseen("mood", "bad", 6)]
    (good, *_) = rows.values()
    assert unseen_values(context, {**rows, TRAIN[1].id: good}) == []


def test_gold_rows_carry_the_label(journal: Journal) -> None:
    found = collected(context_of(RuleBackend(rule=always_good), journal, train=TRAIN, settings=settings("gold")))
    assert {rows[0].completion for rows in found.rows.values()} == {"Mood: good", "Mood: bad"}
    assert all(
        rows[0].completion == f"Mood: {item.labels['mood']}"
        for item, rows in zip(TRAIN, found.rows.values(), strict=True)
    )


def test_of_several_accepted_answers_gold_rows_teach_the_first_that_fits(journal: Journal) -> None:
    several = [["awful", item.labels["mood"], "well"] for item in TRAIN]
    several[0] = ["awful"]
    train = [replace(item, labels={"mood": label}) for item, label in zip(TRAIN, several, strict=True)]
    context = context_of(RuleBackend(rule=always_good), journal, train=train, settings=settings("gold"))
    found = collected(context)
    assert {id: rows[0].completion for id, rows in found.rows.items()} == {
        item.id: f"Mood: {item.labels['mood']}" for item in TRAIN[1:]
    }


@pytest.mark.parametrize(
    ("type", "label", "taught"),
    [
        (Type(kind="union", options=(STR, NULL)), None, ["Mood: null"]),
        (Type(kind="union", options=(STR, NULL)), [None, "well"], ["Mood: null"]),
        (Type(kind="union", options=(Type(kind="list", item=STR), NULL)), ["glad", "calm"], ['Mood: ["glad", "calm"]']),
        (STR, None, []),
        (STR, ["glad", "calm"], ["Mood: glad"]),
    ],
)
def test_a_label_that_is_null_or_a_list_is_taught_where_the_output_can_be_it(
    journal: Journal, type: Type, label: object, taught: list[str]
) -> None:
    program = classifier()
    (module,) = program.modules
    signature = replace(module.signature, outputs=(Field(name="mood", type=type),))
    program = replace(
        program,
        modules=(replace(module, signature=signature),),
        nodes=(replace(program.nodes[0], outputs=signature.outputs),),
        out=(replace(program.out[0], type=type),),
    )
    train = (replace(TRAIN[0], labels={"mood": label}),)
    backend = RuleBackend(rule=always_good)
    found = collected(context_of(backend, journal, program=program, train=train, settings=settings("gold")))
    assert [row.completion for rows in found.rows.values() for row in rows] == taught


def test_the_answer_is_in_the_label_that_the_metric_compares_with(journal: Journal) -> None:
    train = [replace(item, labels={"truth": item.labels["mood"]}) for item in TRAIN]
    metric = build_metric(MetricSection(kind="exact_match", output="mood", label="truth"))
    context = context_of(RuleBackend(rule=always_good), journal, train=tuple(train), settings=settings("gold"))
    context = replace(context, metric=metric, accept=metric)
    found = collected(context)
    assert [rows[0].completion for rows in found.rows.values()] == [f"Mood: {item.labels['mood']}" for item in TRAIN]
    pool = labelled(context, train, ())["classify"]
    assert [demo.outputs for demo in pool.values()] == [item.labels for item in TRAIN]
    assert unseen_values(context, {TRAIN[0].id: found.rows[TRAIN[0].id]}) == [Unseen("mood", "bad", 6)]


def test_sampled_rows_are_accepted_repeats_at_temperature(journal: Journal) -> None:
    seen: list[tuple[float, int]] = []

    class Sampling(RuleBackend):
        def submit(self, requests: object) -> None:
            seen.extend((request.sampling.temperature, request.sampling.seed) for request in requests)
            RuleBackend.submit(self, requests)

        def poll(self) -> list[object]:
            seed = self.waiting[0].sampling.seed
            rest, self.waiting = self.waiting[1:], self.waiting[:1]
            self.rule = lambda asked: f"Mood: {'good' if coin(seed) < 0.5 else 'bad'}"
            finished = RuleBackend.poll(self)
            self.waiting = rest
            return finished

    context = context_of(
        Sampling(rule=always_good), journal, train=TRAIN, settings=settings("sampled", samples=3, temperature=0.7)
    )
    found = collected(context)
    assert len(seen) == 36 and {temperature for temperature, _ in seen} == {0.7}
    assert len({seed for _, seed in seen}) == 36
    labels = {item.id: item.labels["mood"] for item in TRAIN}
    assert 6 < len(found.rows) <= 12
    assert all(len(rows) == 1 and rows[0].source == "sampled" for rows in found.rows.values())
    assert all(rows[0].completion == f"Mood: {labels[example]}" for example, rows in found.rows.items())


def with_demos(context: StepContext, module: str, *demos: Demo) -> Candidate:
    prompts = dict(context.zero_shot.prompts)
    prompts[module] = replace(prompts[module], demos=demos)
    return replace(context.zero_shot, prompts=prompts)


def demo_of(item: Example, origin: DemoOrigin = "bootstrapped") -> Demo:
    return Demo(inputs=item.inputs, outputs=item.labels, example=item.id, origin=origin)


def test_demos_that_an_earlier_step_accepted_are_rows_for_no_further_call(journal: Journal) -> None:
    backend = RuleBackend(rule=always_good)
    context = context_of(backend, journal, train=TRAIN, settings=settings("self", "demos", "gold"))
    unsolved = [item for item in TRAIN if item.labels["mood"] == "bad"]
    solved = next(item for item in TRAIN if item.labels["mood"] == "good")
    kinds = demo_of(unsolved[0]), demo_of(unsolved[1], "labelled"), demo_of(solved)
    found = collected(context, with_demos(context, "classify", *kinds))
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 6), ("demos", 6, 1), ("gold", 5, 5)]
    (row,) = found.rows[unsolved[0].id]
    assert (row.source, row.completion) == ("demos", "Mood: bad")
    assert sources_of(found)[solved.id] == {"self"} and len(backend.asked) == 12


def test_a_demo_of_one_module_of_two_is_no_row(journal: Journal) -> None:
    program = two_hops()
    context = context_of(RuleBackend(rule=wrong), journal, program=program, train=TRAIN, settings=settings("demos"))
    names = [module.name for module in program.modules]
    half = {
        name: replace(prompt, demos=(demo_of(TRAIN[0]),) if name == names[0] else ())
        for name, prompt in context.zero_shot.prompts.items()
    }
    assert len(names) > 1 and not collected(context, replace(context.zero_shot, prompts=half)).rows


def test_a_step_begins_where_it_affords_a_source_that_surely_gives_rows() -> None:
    assert least_runs(settings("demos", "self"), TRAIN) - least_runs(settings("demos", "gold"), TRAIN) == len(TRAIN)


def test_every_call_runs_on_the_current_adapter(journal: Journal) -> None:
    backend = RuleBackend(rule=always_good)
    context = context_of(
        backend,
        journal,
        program=reasoning_program(),
        train=TRAIN,
        settings=settings("self", "sampled", "hinted", samples=2),
    )
    backend.rule = lambda asked: "Reasoning: it looks so"
    collected(context, with_adapter(context.zero_shot, "tuned"))
    assert len(backend.asked) > 12
    assert {asked.adapter for asked in backend.asked} == {"tuned"}


def test_a_teacher_answers_with_its_own_weights(journal: Journal) -> None:
    own, teacher = RuleBackend(rule=always_good), RuleBackend(rule=lambda asked: f"Mood: {truth(asked.value('Text'))}")
    context = context_of(own, journal, train=TRAIN, settings=settings("self", "teacher", teacher="large"))
    engine = Engine(backends={"default": own, "large": teacher}, retrievers={"wiki": EchoRetriever()})
    found = collected(replace(context, engine=engine), with_adapter(context.zero_shot, "tuned"))
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 6), ("teacher", 6, 6)]
    assert len(teacher.asked) == 6 and {asked.adapter for asked in teacher.asked} == {None}


def test_a_teacher_that_is_not_there_is_an_error(journal: Journal) -> None:
    context = context_of(RuleBackend(rule=always_good), journal, train=TRAIN, settings=settings("teacher", teacher="x"))
    with pytest.raises(CompileError, match="BTC405") as caught:
        collected(context)
    assert "`default`" in (caught.value.diagnostics[0].help or "")


def test_gold_inputs_of_a_later_step_come_from_the_programs_own_run(journal: Journal) -> None:
    backend = TellingApart(rule=always_good)
    found = collected(context_of(backend, journal, program=two_hops(), train=TRAIN, settings=settings("self", "gold")))
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 0), ("gold", 12, 12)]
    for rows in found.rows.values():
        assert [row.module for row in rows] == ["classify"]  # the queries have no labels
        assert "about clouds" in rows[0].prompt.messages[-1].content


HINTED = {
    "honest": "because of the tone",
    "telling": "it is plainly GOOD, not bad",
    "useless": "no idea",
}


def hinted_rule(kind: str) -> object:
    """Zero-shot it is always wrong; told the answer it writes a rationale; with the honest one it finds the answer."""

    def rule(asked: Asked) -> str:
        text = asked.value("Text")
        if "Right mood:" in asked.text:
            return f"Reasoning: {HINTED[kind]}"
        if "Reasoning:" in asked.text:
            return f"Mood: {truth(text) if HINTED['honest'] in asked.text else wrong(text)}"
        return f"Reasoning: hm\nMood: {wrong(text)}"

    return rule


@pytest.mark.parametrize(("kind", "solved"), [("honest", 12), ("telling", 0), ("useless", 0)])
def test_a_hinted_rationale_has_to_earn_its_label(journal: Journal, kind: str, solved: int) -> None:
    backend = RuleBackend(rule=hinted_rule(kind))
    context = context_of(
        backend,
        journal,
        program=reasoning_program(),
        train=TRAIN,
        settings=settings("self", "gold", "hinted", samples=1),
    )
    found = collected(context)
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 0), ("gold", 12, 0), ("hinted", 12, solved)]
    for rows in found.rows.values():
        (row,) = rows
        assert row.source == "hinted"
        assert row.completion.splitlines()[0] == f"Reasoning: {HINTED['honest']}"
        assert row.completion.splitlines()[1].startswith("Mood: ")
        assert "Right mood" not in "".join(turn.content for turn in row.prompt.messages)


def mood_and_tone() -> Program:
    """`classify` and beside it `why`, which reasons: both answer a labelled output of the program."""
    program = classifier()
    (module,), (call,) = program.modules, program.nodes
    tone = (Field(name="tone", type=MOOD),)
    why = replace(module, name="why", kind="chain_of_thought", signature=replace(module.signature, outputs=tone))
    second = replace(call, name="second", module="why", outputs=why.gives)
    out = (*program.out, Binding(name="tone", value=Ref(step="second", field="tone"), type=MOOD))
    return replace(program, modules=(module, why), nodes=(call, second), out=out)


def reasons_when_told(asked: Asked) -> str:
    """Wrong, but for reasoning towards an answer it is told, which earns the good ones."""
    text = asked.value("Text")
    if "Right tone:" in asked.text:
        return "Reasoning: by the sound of it"
    if "Reasoning:" in asked.text:
        return "Tone: good"
    return f"Mood: {wrong(text)}\nReasoning: hm\nTone: {wrong(text)}"


class AnswersEither(RuleBackend):
    """Leaves out of the rule's answer to a prompt what that does not ask for."""

    def poll(self) -> list[object]:
        (request, *rest) = self.waiting
        reasons = "tone" in request.prompt.messages[0].content.lower()
        rule, self.waiting = self.rule, [request]

        def own(asked: Asked) -> str:
            lines = rule(asked).splitlines()
            return "\n".join(line for line in lines if line.startswith("Mood:") != reasons)

        self.rule = own
        finished = RuleBackend.poll(self)
        self.rule, self.waiting = rule, rest
        return finished


@pytest.mark.parametrize("order", [("gold", "hinted"), ("hinted", "gold")])
def test_labels_of_one_kind_of_module_leave_those_of_the_other_to_their_source(
    journal: Journal, order: tuple[str, str]
) -> None:
    train = tuple(replace(item, labels={**item.labels, "tone": item.labels["mood"]}) for item in TRAIN)
    backend = AnswersEither(rule=reasons_when_told)
    context = context_of(
        backend, journal, program=mood_and_tone(), train=train, settings=settings("self", *order, samples=1)
    )
    found = collected(context)
    counts = {"gold": 12, "hinted": 6}
    assert [tuple(tried) for tried in found.tried] == [("self", 12, 0), *((name, 12, counts[name]) for name in order)]
    for item in train:
        both = {("classify", "gold"), *([("why", "hinted")] if truth(item.inputs["text"]) == "good" else [])}
        assert {(row.module, row.source) for row in found.rows[item.id]} == both
        assert len(found.rows[item.id]) == len(both)
    assert unseen_values(context, found.rows) == [Unseen("tone", "bad", 6)]


def test_runs_of_the_program_after_labels_teach_the_modules_that_have_no_row(journal: Journal) -> None:
    train = tuple(replace(item, labels={**item.labels, "tone": item.labels["mood"]}) for item in TRAIN)

    def right(asked: Asked) -> str:
        mood = truth(asked.value("Text"))
        return f"Mood: {mood}\nReasoning: hm\nTone: {mood}"

    context = context_of(
        AnswersEither(rule=right), journal, program=mood_and_tone(), train=train, settings=settings("gold", "self")
    )
    found = collected(context)
    assert [tuple(tried) for tried in found.tried] == [("gold", 12, 12), ("self", 12, 12)]
    for rows in found.rows.values():
        assert [(row.module, row.source) for row in rows] == [("classify", "gold"), ("why", "self")]


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("Clearly a VIRGINICA flower", {"species": "virginica"}, True),
        ("petals like virginicas have", {"species": "virginica"}, True),
        ("a large petal", {"species": "virginica"}, False),
        ("4.7 is long", {"n": 4}, False),
        ("so 4, then", {"n": 4}, True),
        ("costs 4.", {"n": 4}, True),
        ("14 apples", {"n": 4}, False),
        ("not an option", {"x": "no"}, False),
        ("so no", {"x": "no"}, True),
        ("names Rome", {"places": ["Paris", "Rome"]}, True),
        ("anything", {"x": None, "y": ""}, False),
    ],
)
def test_what_counts_as_saying_the_label(text: str, labels: dict[str, object], expected: bool) -> None:
    assert contains_label(text, labels) is expected
