"""The prompts step against a backend that answers by a rule: which candidates, which demos, on which adapter."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from answering import (
    Asked,
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
from said import Said

from bt_compiler.data.example import make_example
from bt_compiler.errors import CompileError
from bt_compiler.graph import spec_candidate
from bt_compiler.graph.candidate import Demo, Prompt
from bt_compiler.optimize.bootstrap import labelled
from bt_compiler.optimize.budget import Unlimited
from bt_compiler.optimize.inner import inner_split
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.prompts import prompts_step
from bt_compiler.spec.sections import OptimizeSection, PromptsSection


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


def right(asked: Asked) -> str:
    return f"Mood: {truth(asked.value('Text'))}"


def never_right(asked: Asked) -> str:
    return f"Mood: {wrong(asked.value('Text'))}"


def sometimes(asked: Asked) -> str:
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts) < 0.3 + 0.2 * asked.demos
    return f"Mood: {truth(text) if solved else wrong(text)}"


def candidates(evidence: object) -> list[dict]:
    return evidence["candidates"]


def test_candidates_are_the_three_fixed_ones_then_the_shuffles(journal: Journal) -> None:
    result = prompts_step(context_of(RuleBackend(rule=sometimes), journal), spec_candidate(classifier()))
    assert [item["label"] for item in candidates(result.evidence)] == [
        "zero-shot",
        "labelled",
        "bootstrapped",
        *[f"shuffle {number}" for number in range(1, 7)],
    ]


def test_the_best_on_val_is_chosen_and_scored_on_val_alone(journal: Journal) -> None:
    context = context_of(RuleBackend(rule=sometimes), journal)
    result = prompts_step(context, context.zero_shot)
    val = inner_split(context.train, context.settings.prompts, context.seed).val
    scored = [item for item in candidates(result.evidence) if "score" in item]
    assert len(scored) > 3
    for item in scored:
        assert list(item["scores"]) == [one.id for one in val]
        assert item["score"] == pytest.approx(sum(item["scores"].values()) / len(val))
    best = max(item["score"] for item in scored)
    chosen = next(item for item in scored if item["score"] == best)
    assert result.evidence["chosen"] == chosen["label"]
    assert result.candidate.id == chosen["id"]
    assert best > scored[0]["score"], "the rule rewards demos: zero-shot must not have won"


def test_ties_go_to_the_earliest(journal: Journal) -> None:
    context = context_of(RuleBackend(rule=right), journal)
    result = prompts_step(context, context.zero_shot)
    assert {item["score"] for item in candidates(result.evidence) if "score" in item} == {1.0}
    assert result.evidence["chosen"] == "zero-shot"
    assert result.candidate.prompts == context.zero_shot.prompts


def test_every_call_runs_on_the_current_candidates_adapter(journal: Journal) -> None:
    backend = RuleBackend(rule=sometimes)
    context = context_of(backend, journal)
    result = prompts_step(context, with_adapter(context.zero_shot, "tuned"))
    assert {asked.adapter for asked in backend.asked} == {"tuned"}
    assert len(backend.asked) > 50
    assert result.candidate.adapter_for("classify").sha256 == "tuned"


def test_the_teacher_runs_once_and_an_example_never_sees_its_own_demo(journal: Journal) -> None:
    backend = RuleBackend(rule=right)
    context = context_of(backend, journal)
    train = inner_split(context.train, context.settings.prompts, context.seed).train
    demos = tuple(Demo(inputs=one.inputs, outputs=one.labels, example=one.id) for one in train)
    current = replace(
        context.zero_shot, id="current", prompts={"classify": Prompt(instructions="Say the mood.", demos=demos)}
    )
    prompts_step(context, current)
    taught = backend.asked[: len(train)]
    assert sorted(asked.value("Text") for asked in taught) == sorted(one.inputs["text"] for one in train)
    for asked in taught:
        assert asked.demos == len(train) - 1
        assert all(asked.value("Text") not in shown for shown in asked.demo_texts)
    searched = {one.inputs["text"] for one in train} & {asked.value("Text") for asked in backend.asked[len(train) :]}
    assert not searched, "the teacher's traces are generated once and shared"


def test_demos_come_from_accepted_traces_of_inner_train(journal: Journal) -> None:
    backend = RuleBackend(rule=lambda asked: right(asked) if " 1" in asked.text else never_right(asked))
    settings = OptimizeSection(prompts=PromptsSection(max_labeled_demos=0, candidates=4))
    context = context_of(backend, journal, settings=settings, train=examples("train", 40))
    result = prompts_step(context, context.zero_shot)
    train = inner_split(context.train, settings.prompts, context.seed).train
    accepted = {one.id for one in train if " 1" in one.inputs["text"]}
    assert result.evidence["bootstrap"] == {
        "tried": len(train),
        "accepted": len(accepted),
        "failed": 0,
        "by_module": {"classify": len(accepted)},
    }
    shown = {text for asked in backend.asked for text in asked.demo_texts}
    assert shown
    assert all(" 1" in text for text in shown)


def test_labelled_demos_fill_what_bootstrapping_leaves(journal: Journal) -> None:
    settings = OptimizeSection(prompts=PromptsSection(max_bootstrapped_demos=2, max_labeled_demos=4, candidates=3))
    backend = RuleBackend(rule=sometimes)
    context = context_of(backend, journal, settings=settings, train=examples("train", 40))
    by_label = {item["label"]: item for item in candidates(prompts_step(context, context.zero_shot).evidence)}
    assert by_label["zero-shot"]["demos"] == {"classify": 0}
    assert {by_label[label]["demos"]["classify"] for label in by_label if label != "zero-shot"} == {4}


@pytest.mark.parametrize("rule", [right, never_right])
def test_exact_copies_are_one_demo_of_a_prompt(journal: Journal, rule: object) -> None:
    contents = examples("train", 4)
    train = tuple(make_example(one.inputs, one.labels, copy=copy) for copy in range(1, 6) for one in contents)
    settings = OptimizeSection(prompts=PromptsSection(train=12, candidates=4))
    backend = RuleBackend(rule=rule)
    prompts_step(context_of(backend, journal, train=train, settings=settings, seed=3), spec_candidate(classifier()))
    shown = [asked.demo_texts for asked in backend.asked if asked.demos]
    assert shown and all(len(set(texts)) == len(texts) > 1 for texts in shown)


def test_labelled_demos_carry_the_label_and_not_the_answer(journal: Journal) -> None:
    backend = RuleBackend(rule=never_right)
    context = context_of(backend, journal)
    result = prompts_step(context, context.zero_shot)
    assert result.evidence["bootstrap"]["accepted"] == 0
    pool = labelled(context, context.train, ())["classify"]
    assert all(demo.outputs["mood"] == truth(demo.inputs["text"]) for demo in pool.values())
    assert {demo.origin for demo in pool.values()} == {"labelled"}
    assert all("reasoning" not in demo.outputs for demo in pool.values())


def test_equal_prompts_are_scored_once(journal: Journal) -> None:
    settings = OptimizeSection(prompts=PromptsSection(max_bootstrapped_demos=0, max_labeled_demos=0))
    backend = RuleBackend(rule=right)
    said = Said()
    context = replace(context_of(backend, journal, settings=settings), progress=said)
    result = prompts_step(context, context.zero_shot)
    val = inner_split(context.train, settings.prompts, context.seed).val
    assert len(backend.asked) == len(val), "no teacher without bootstrapped demos, and one candidate in all"
    assert [item.get("same_as") for item in candidates(result.evidence)] == [None] + ["zero-shot"] * 8
    assert said.notes == ["8 of 9 candidates are as others"]


def test_progress_speaks_of_equal_candidates_only_where_there_are_some(journal: Journal) -> None:
    said = Said()
    context = replace(context_of(RuleBackend(rule=sometimes), journal), progress=said)
    result = prompts_step(context, context.zero_shot)
    assert not any(item.get("same_as") for item in candidates(result.evidence))
    assert not any("as others" in note for note in said.notes)


class NoMore(Unlimited):
    """Nothing beyond what a step begins with."""

    limited = True

    def allows(self, name: str, examples: int) -> bool:
        return False


def test_a_race_that_the_budget_ends_is_told_apart_from_one_that_was_lost(journal: Journal) -> None:
    def rule(asked: Asked) -> str:
        return right(asked) if asked.demos else never_right(asked)  # zero-shot can win no more after one round

    settings = OptimizeSection(prompts=PromptsSection(train=10, val=40, candidates=2, max_bootstrapped_demos=0))
    context = context_of(RuleBackend(rule=rule), journal, settings=settings, train=examples("train", 50))
    whole = prompts_step(context, context.zero_shot).evidence
    assert "cut_short" not in whole
    assert [item.get("dropped_after") for item in candidates(whole)] == [16, None, None, None, None]
    said = Said()
    limited = replace(context, budget=NoMore(), progress=said)
    evidence = prompts_step(limited, context.zero_shot).evidence
    assert evidence["cut_short"] == ["3 of 5 candidates", "the race after 16 of 40 examples"]
    assert not any("dropped_after" in item for item in candidates(evidence))
    assert evidence["racing"]["runs"] == evidence["racing"]["without_racing"] == 2 * 16
    assert not any("dropped" in line for line in said.lines)
    assert sum("ends after 16 of 40 examples" in line for line in said.lines) == 1


def test_written_demos_and_instructions_of_the_spec_are_kept(journal: Journal) -> None:
    written = Demo(inputs={"text": "g written"}, outputs={"mood": "good"}, origin="written")
    backend = RuleBackend(rule=sometimes)
    context = context_of(backend, journal)
    start = replace(context.zero_shot, prompts={"classify": Prompt(instructions="Own words.", demos=(written,))})
    result = prompts_step(replace(context, zero_shot=start), start)
    assert all("g written" in asked.demo_texts[0] for asked in backend.asked)
    assert result.candidate.prompts["classify"].instructions == "Own words."
    assert result.candidate.prompts["classify"].demos[0] == written


def test_search_starts_from_the_specs_prompts_not_from_the_current_demos(journal: Journal) -> None:
    backend = RuleBackend(rule=right)
    context = context_of(backend, journal)
    old = Demo(inputs={"text": "g old"}, outputs={"mood": "good"}, example="old")
    current = replace(context.zero_shot, id="current", prompts={"classify": Prompt(instructions="Old.", demos=(old,))})
    result = prompts_step(context, current)
    train = inner_split(context.train, context.settings.prompts, context.seed).train
    assert all("g old" in asked.demo_texts[0] for asked in backend.asked[: len(train)])
    assert not any("g old" in text for asked in backend.asked[len(train) :] for text in asked.demo_texts)
    assert result.candidate.prompts["classify"].instructions == "Say the mood."
    assert result.candidate.parent == "current"


def test_frozen_modules_keep_their_prompts(journal: Journal) -> None:
    program = classifier()
    (free,) = program.modules
    context = context_of(
        RuleBackend(rule=sometimes),
        journal,
        program=replace(program, modules=(free, replace(free, name="still", train=("weights",)))),
    )
    demo = Demo(inputs={"text": "g own"}, outputs={"mood": "good"}, example="own")
    own = Prompt(instructions="Own.", demos=(demo,))
    current = replace(context.zero_shot, id="own", prompts={"classify": own, "still": own})
    found = prompts_step(context, current).candidate.prompts
    assert found["still"] == own
    assert found["classify"] != own


def test_a_search_that_may_change_no_prompt_asks_nothing(journal: Journal) -> None:
    program = classifier()
    frozen = replace(program, modules=(replace(program.modules[0], train=("weights",)),))
    backend = RuleBackend(rule=sometimes)
    context = context_of(backend, journal, program=frozen)
    with pytest.raises(CompileError, match="BTC454"):
        prompts_step(context, context.zero_shot)
    assert backend.asked == []


def test_another_seed_searches_other_prompts(journal: Journal) -> None:
    first, second = (
        prompts_step(context_of(RuleBackend(rule=sometimes), journal, seed=seed), spec_candidate(classifier()))
        for seed in (1, 2)
    )
    assert {item["id"] for item in candidates(first.evidence)[1:]}.isdisjoint(
        item["id"] for item in candidates(second.evidence)[1:]
    )


def test_each_module_of_a_loop_gets_one_demo_of_each_trace(journal: Journal) -> None:
    def rule(asked: Asked) -> str:
        text = asked.value("Text")
        passages = asked.text.count("about ")
        if passages < 2 and f"done {text}" not in asked.text:
            return f"Query: hop {passages} of {text}"
        return f"Mood: {truth(text)}"

    settings = OptimizeSection(prompts=PromptsSection(candidates=2, max_labeled_demos=3))
    context = context_of(RuleBackend(rule=rule), journal, program=two_hops(), settings=settings)
    result = prompts_step(context, context.zero_shot)
    train = inner_split(context.train, settings.prompts, context.seed).train
    assert result.evidence["bootstrap"]["by_module"] == {"ask": len(train), "classify": len(train)}
    unshuffled = next(item for item in candidates(result.evidence) if item["label"] == "bootstrapped")
    assert unshuffled["demos"] == {"ask": 3, "classify": 3}

    alone = replace(settings, prompts=replace(settings.prompts, max_bootstrapped_demos=0))
    result = prompts_step(replace(context, settings=alone), context.zero_shot)
    filled = [item["demos"] for item in candidates(result.evidence) if item["label"] != "zero-shot"]
    assert filled == [{"ask": 0, "classify": 3}] * 4, "inputs of labelled demos inside the program need its runs"
    assert result.evidence["bootstrap"]["tried"] == len(train) and result.evidence["bootstrap"]["accepted"] == 0

    traces = context.engine.run(context.program, context.zero_shot, train)
    pool = labelled(context, train, traces)
    assert set(pool) == {"classify"}, "the queries have no labels"
    assert labelled(context, train, ()) == {}, "what a loop found is not in the data"
    for one, trace in zip(train, traces, strict=True):
        demo = pool["classify"][one.id]
        assert demo.outputs == one.labels
        assert demo.inputs == trace.steps[-1].inputs
        assert len(demo.inputs["context"]) == 2
