"""Strategies: which adapter every call runs on, which prefix ships, and what a killed run repeats."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering import (
    Asked,
    Killed,
    RuleBackend,
    coin,
    splits,
    task_of,
    train_by_name,
    truth,
    wrong,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bt_compiler.canonical import canonical_json, seed_of
from bt_compiler.engine.cache import CompletionCache
from bt_compiler.errors import CompileError
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.prompts import prompts_step
from bt_compiler.optimize.strategy import StrategyResult, run_strategy
from bt_compiler.optimize.whole_runs import WholeRuns
from bt_compiler.spec.sections import OptimizeSection, PromptsSection

STEPS = {"prompts": prompts_step, "weights": train_by_name}
SMALL = OptimizeSection(prompts=PromptsSection(candidates=2, max_bootstrapped_demos=2, max_labeled_demos=2))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal", {"test": 1}) as opened:
        yield opened


def sometimes(asked: Asked) -> str:
    """Better with demos and better still when tuned."""
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts) < 0.3 + 0.1 * asked.demos + (0.4 if asked.adapter else 0.0)
    return f"Mood: {truth(text) if solved else wrong(text)}"


def always(asked: Asked) -> str:
    return f"Mood: {truth(asked.value('Text'))}"


def facts(result: StrategyResult) -> str:
    """All of a result but what it cost."""
    return canonical_json(
        {
            "prefixes": [
                [list(one.steps), one.candidate.id, None if one.dev is None else [list(s) for s in one.dev.scores]]
                for one in result.prefixes
            ],
            "shipped": result.shipped,
            "prompts": repr(result.candidate.prompts),
            "evidence": [dict(step.evidence) for step in result.steps],
            "reports": {
                who: {split: [list(score) for score in report.scores] for split, report in by_split.items()}
                for who, by_split in result.reports.items()
            },
            "differences": {
                split: [one.mean, one.interval.low, one.interval.high] for split, one in result.differences.items()
            },
            "lineage": [[one.id, one.parent, one.origin] for one in result.lineage],
        }
    )


def test_every_call_of_a_step_runs_on_that_steps_adapter(journal: Journal) -> None:
    backend = RuleBackend(rule=sometimes)
    counts: list[Counter[str | None]] = []
    worded: list[set[tuple[str, ...]]] = []

    def counted(step: Any) -> Any:
        def run(context: Any, candidate: Any) -> Any:
            before = len(backend.asked)
            result = step(context, candidate)
            counts.append(Counter(asked.adapter for asked in backend.asked[before:]))
            worded.append({asked.demo_texts for asked in backend.asked[before:]})
            return result

        return run

    # The journal answers what was asked before, so each step's calls are counted against stores that forget.
    task = task_of(backend, journal, strategy=("prompts", "weights", "prompts"))
    task = replace(task, engine=replace(task.engine, stores=()))
    result = run_strategy(task, steps={name: counted(step) for name, step in STEPS.items()})
    first, second, third = counts
    assert set(first) == {None}
    assert set(second) == {None}
    assert set(third) == {"tuned-2"}
    inner = third["tuned-2"]
    searched = [item for item in result.steps[2].evidence["candidates"] if "score" in item]
    split = result.steps[2].evidence["split"]
    # candidates of the same words ask at the same time, so once
    assert len(worded[2]) <= len(searched)
    assert inner == split["train"] + len(worded[2]) * split["val"]
    assert result.prefixes[3].candidate.adapter_for("classify").sha256 == "tuned-2"


def test_a_second_weights_step_starts_from_the_first_ones_adapter(journal: Journal) -> None:
    backend = RuleBackend(rule=sometimes)
    result = run_strategy(task_of(backend, journal, strategy=("weights", "weights")), steps=STEPS)
    assert result.prefixes[0].candidate.adapter_for("classify") is None
    assert result.prefixes[2].candidate.adapter_for("classify").sha256 == "tuned-2"
    assert Counter(asked.adapter for asked in backend.asked)["tuned-1"] > 0


def test_prompts_after_prompts_is_no_repetition(journal: Journal) -> None:
    result = run_strategy(task_of(RuleBackend(rule=sometimes), journal, strategy=("prompts", "prompts")), steps=STEPS)
    first, second = (
        {item["id"] for item in step.evidence["candidates"] if "shuffle" in item["label"]} for step in result.steps
    )
    assert len(first) > 3
    assert first.isdisjoint(second)
    assert result.prefixes[2].candidate.parent == result.prefixes[1].candidate.id


def test_each_step_has_its_own_seed(journal: Journal) -> None:
    seen: list[tuple[int, int]] = []

    def note(context: Any, candidate: Any) -> Any:
        seen.append((context.index, context.seed))
        return train_by_name(context, candidate)

    task = task_of(RuleBackend(rule=sometimes), journal, strategy=("weights", "weights"), seed=11)
    run_strategy(task, steps={"weights": note})
    assert seen == [(1, seed_of(11, 1)), (2, seed_of(11, 2))]
    assert seen[0][1] != seen[1][1]


def test_the_best_prefix_on_dev_ships(journal: Journal) -> None:
    def peaked(asked: Asked) -> str:
        text = asked.value("Text")
        return f"Mood: {truth(text) if asked.adapter == 'tuned-1' else wrong(text)}"

    task = task_of(RuleBackend(rule=peaked), journal, strategy=("weights", "weights", "weights"))
    result = run_strategy(task, steps=STEPS)
    assert [prefix.dev.mean for prefix in result.prefixes] == [0.0, 1.0, 0.0, 0.0]
    assert (result.shipped, result.chosen_by) == (1, "dev")
    assert [one.id for one in result.lineage] == [prefix.candidate.id for prefix in result.prefixes[:2]]
    assert result.reports["shipped"]["test"].mean == 1.0
    assert result.reports["zero_shot"]["test"].mean == 0.0
    assert result.differences["test"].mean == 1.0
    assert result.differences["test"].interval.low > 0


def test_ties_go_to_the_earliest_prefix(journal: Journal) -> None:
    result = run_strategy(task_of(RuleBackend(rule=always), journal, strategy=("prompts", "weights")), steps=STEPS)
    assert {prefix.dev.mean for prefix in result.prefixes} == {1.0}
    assert result.shipped == 0


def test_test_is_scored_for_two_candidates_alone(journal: Journal) -> None:
    backend = RuleBackend(rule=sometimes)
    task = task_of(backend, journal, strategy=("prompts", "weights", "prompts"))
    result = run_strategy(replace(task, engine=replace(task.engine, stores=())), steps=STEPS)
    asked = Counter(one.value("Text") for one in backend.asked if " test " in one.value("Text"))
    assert result.shipped > 0
    assert set(asked.values()) == {2}
    assert len(asked) == 6


def test_an_empty_strategy_ships_zero_shot(journal: Journal) -> None:
    backend = RuleBackend(rule=always)
    result = run_strategy(task_of(backend, journal, strategy=()), steps=STEPS)
    assert result.shipped == 0
    assert result.candidate.id == "zero-shot"
    assert result.reports["shipped"]["test"] == result.reports["zero_shot"]["test"]
    assert len(backend.asked) == 8 + 6


def test_without_dev_the_whole_strategy_ships_and_says_so(journal: Journal) -> None:
    task = task_of(RuleBackend(rule=always), journal, strategy=("weights",), data=splits(dev=0))
    result = run_strategy(task, steps=STEPS)
    assert (result.shipped, result.chosen_by) == (1, "last")
    assert set(result.reports["shipped"]) == {"test"}


def test_without_dev_and_test_there_is_nothing_to_report(journal: Journal) -> None:
    task = task_of(RuleBackend(rule=always), journal, strategy=("weights",), data=splits(dev=0, test=0))
    result = run_strategy(task, steps=STEPS)
    assert result.reports == {"zero_shot": {}, "shipped": {}}
    assert result.differences == {}


def test_without_train_a_step_is_an_error(journal: Journal) -> None:
    task = task_of(RuleBackend(rule=always), journal, strategy=("prompts",), data=splits(train=0))
    with pytest.raises(CompileError, match="BTC451"):
        run_strategy(task, steps=STEPS)


def test_accounts_of_a_replay_are_those_of_the_first_run(journal: Journal) -> None:
    first = run_strategy(task_of(RuleBackend(rule=sometimes), journal, strategy=("prompts",)), steps=STEPS)
    backend = RuleBackend(rule=sometimes)
    again = run_strategy(task_of(backend, journal, strategy=("prompts",)), steps=STEPS)
    assert backend.asked == []
    assert again.steps == first.steps
    assert first.steps[0].calls > first.steps[0].cached_calls
    assert first.steps[0].prompt_tokens > 0


# ---- interruption


def compiled(folder: Path, backend: RuleBackend, cache: Path | None = None) -> StrategyResult:
    """One run of a whole strategy in a journal that is opened and closed for it."""
    opened = None if cache is None else CompletionCache(cache)
    try:
        with Journal.open(folder, {"test": 1}) as journal:
            task = task_of(
                backend,
                journal,
                strategy=("prompts", "weights", "prompts"),
                data=splits(train=8, dev=6, test=2),
                cache=opened,
                settings=SMALL,
            )
            return run_strategy(task, steps=STEPS)
    finally:
        if opened is not None:
            opened.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    backend = RuleBackend(rule=sometimes)
    result = compiled(tmp_path_factory.mktemp("undisturbed") / "journal", backend)
    assert result.shipped > 0
    return facts(result), len(backend.asked)


def test_killed_after_each_completion_it_ends_the_same_and_repeats_nothing(
    tmp_path: Path, undisturbed: tuple[str, int]
) -> None:
    """One journal that is killed after every single completion until the strategy gets through."""
    expected, calls = undisturbed
    asked = 0
    while True:
        backend = RuleBackend(rule=sometimes, die_after=1)
        try:
            result = compiled(tmp_path / "journal", backend)
        except Killed:
            asked += len(backend.asked)
            assert len(backend.asked) == 1
            continue
        asked += len(backend.asked)
        break
    assert facts(result) == expected
    assert asked == calls, "what was answered before a kill is never asked again"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(min_value=0, max_value=60), max_size=4), order=st.integers(0, 1000))
def test_killed_anywhere_in_any_order_it_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: tuple[str, int], kills: list[int], order: int
) -> None:
    folder = tmp_path_factory.mktemp("killed") / "journal"
    asked = 0
    for number, kill in enumerate(kills):
        backend = RuleBackend(rule=sometimes, die_after=kill)
        backend.shuffler.seed(order + number)
        with contextlib.suppress(Killed):
            compiled(folder, backend)
        asked += len(backend.asked)
    backend = RuleBackend(rule=sometimes)
    backend.shuffler.seed(order - 1)
    assert facts(compiled(folder, backend)) == undisturbed[0]
    assert asked + len(backend.asked) == undisturbed[1]


def test_a_warm_cache_changes_nothing_but_the_cost(tmp_path: Path, undisturbed: tuple[str, int]) -> None:
    expected, calls = undisturbed
    cache = tmp_path / "cache.sqlite"
    backend = RuleBackend(rule=sometimes, die_after=calls // 2)
    with pytest.raises(Killed):
        compiled(tmp_path / "first", backend, cache)
    warm = RuleBackend(rule=sometimes)
    assert facts(compiled(tmp_path / "second", warm, cache)) == expected
    assert len(warm.asked) == calls - calls // 2
    hot = RuleBackend(rule=sometimes)
    assert facts(compiled(tmp_path / "third", hot, cache)) == expected
    assert hot.asked == []


def test_the_journal_alone_resumes_when_the_cache_is_cleared(tmp_path: Path, undisturbed: tuple[str, int]) -> None:
    cache = tmp_path / "cache.sqlite"
    compiled(tmp_path / "journal", RuleBackend(rule=sometimes), cache)
    emptied = CompletionCache(cache)
    emptied.clear()
    emptied.close()
    again = RuleBackend(rule=sometimes)
    assert facts(compiled(tmp_path / "journal", again, cache)) == undisturbed[0]
    assert again.asked == []


# ---- an engine whose rows depend on their batch


class MoodyBackend:
    """Answers depend on what else was submitted at the same time."""

    def __init__(self, die_after: int | None = None) -> None:
        self.inner = RuleBackend(rule=self._answer, die_after=die_after)
        self.batch = ""

    def _answer(self, asked: Asked) -> str:
        text = asked.value("Text")
        return f"Mood: {truth(text) if coin(text, asked.demo_texts, asked.adapter, self.batch) < 0.6 else wrong(text)}"

    def submit(self, requests: Any) -> None:
        self.batch = canonical_json(sorted(repr(request.prompt) for request in requests))
        self.inner.submit(requests)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def compiled_whole(folder: Path, backend: Any, *, whole: bool) -> StrategyResult:
    with Journal.open(folder, {"test": 1}) as journal:
        task = task_of(backend, journal, strategy=("prompts", "weights"), data=splits(8, 6, 2), settings=SMALL)
        if whole:
            runs = WholeRuns(journal.completions)
            task = replace(task, engine=replace(task.engine, stores=(runs,), ended=runs.commit))
        return run_strategy(task, steps=STEPS)


@pytest.mark.parametrize("whole", [True, False])
def test_where_rows_depend_on_their_batch_runs_are_kept_whole(tmp_path: Path, whole: bool) -> None:
    first = MoodyBackend()
    expected = facts(compiled_whole(tmp_path / "undisturbed", first, whole=whole))
    ends: set[str] = set()
    for kill in range(3, len(first.asked), 7):
        folder = tmp_path / f"killed-{kill}"
        with pytest.raises(Killed):
            compiled_whole(folder, MoodyBackend(die_after=kill), whole=whole)
        ends.add(facts(compiled_whole(folder, MoodyBackend(), whole=whole)))
    assert (ends == {expected}) is whole, "without whole runs such an engine ends differently: the test has teeth"
