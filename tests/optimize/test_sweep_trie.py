"""Sweeps: what strategies share is computed once, and is exactly what each would have computed by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from answering import Asked, Killed, RuleBackend, coin, splits, task_of, train_by_name, truth, wrong

from bt_compiler.canonical import canonical_json
from bt_compiler.data.example import Splits
from bt_compiler.engine.request import Completion
from bt_compiler.errors import BackendError, BtcError, CompileError
from bt_compiler.optimize.branch import Branch
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.prompts import prompts_step
from bt_compiler.optimize.strategy import run_strategy
from bt_compiler.optimize.sweep import PAPER, Cell, in_order, run_sweep
from bt_compiler.optimize.sweep_table import label, sweep_table
from bt_compiler.optimize.whole_runs import WholeRuns
from bt_compiler.spec.sections import OptimizeSection, PromptsSection

STEPS = {"prompts": prompts_step, "weights": train_by_name}
SMALL = OptimizeSection(prompts=PromptsSection(candidates=1, max_bootstrapped_demos=2, max_labeled_demos=2))
DATA = splits(train=8, dev=6, test=4)
SIZES = {name: len(part) for name, part in DATA._asdict().items()}
P, T = "prompts", "weights"


def sometimes(asked: Asked) -> str:
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts, asked.adapter) < 0.3 + 0.1 * asked.demos + (0.3 if asked.adapter else 0.0)
    return f"Mood: {truth(text) if solved else wrong(text)}"


def swept(
    folder: Path,
    backend: Any,
    *,
    strategies: Sequence[tuple[str, ...]] = PAPER,
    seeds: Sequence[int] = (0,),
    steps: Mapping[str, Any] = STEPS,
    data: Splits = DATA,
    whole: bool = False,
) -> tuple[Cell, ...]:
    """One sweep in a journal that is opened and closed for it. `whole`: as on engines that run in fixed parts."""
    with Journal.open(folder, {"test": 1}) as journal:

        def task(seed: int, path: tuple[str, ...]) -> Any:
            branch = Branch(journal, seed=seed, steps=path, apart=whole)
            made = task_of(backend, branch, strategy=path, data=data, settings=SMALL, seed=seed)
            if whole:
                runs = WholeRuns(branch.completions)
                made = replace(made, engine=replace(made.engine, stores=(runs,), ended=runs.commit))
            return made

        return run_sweep(strategies, seeds, task, steps=steps)


def facts(cells: Sequence[Cell]) -> dict[tuple[Any, ...], str]:
    """All of every cell but what it cost."""
    return {
        (cell.strategy, cell.seed): canonical_json(
            {
                "candidates": [[prefix.candidate.id, list(prefix.steps)] for prefix in cell.prefixes],
                "scores": {split: [list(one) for one in report.scores] for split, report in cell.reports.items()},
                "shipped": cell.shipped,
                "of the shipped": {
                    split: [list(one) for one in report.scores] for split, report in cell.shipped_reports.items()
                },
                "evidence": [dict(step.evidence) for step in cell.steps],
            }
        )
        for cell in cells
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Cell, ...], RuleBackend]:
    backend = RuleBackend(rule=sometimes)
    return swept(tmp_path_factory.mktemp("sweep") / "journal", backend), backend


def test_every_shared_prefix_is_computed_once(tmp_path: Path) -> None:
    run: list[tuple[int, int, str, str]] = []

    def noted(kind: str) -> Any:
        def step(context: Any, candidate: Any) -> Any:
            run.append((context.seed, context.index, kind, candidate.id))
            return STEPS[kind](context, candidate)

        return step

    cells = swept(
        tmp_path / "journal", RuleBackend(rule=sometimes), seeds=(0, 1), steps={kind: noted(kind) for kind in STEPS}
    )
    assert len(run) == 2 * 8, "nine strategies name 16 steps, of which 8 differ"
    assert len({seed for seed, *_ in run}) == 2 * 3, "a step's seed is that of its place"
    by_name = {cell.strategy: cell for cell in cells if cell.seed == 0}
    assert by_name[P, T, P].prefixes[:3] == by_name[P, T].prefixes
    assert by_name[P, T].steps == by_name[P, T, P].steps[:2]


def test_a_cell_is_what_its_strategy_gives_by_itself_for_fewer_calls(
    tmp_path: Path, undisturbed: tuple[tuple[Cell, ...], RuleBackend]
) -> None:
    cells, backend = undisturbed
    alone = 0
    for number, cell in enumerate(cells):
        own = RuleBackend(rule=sometimes)
        with Journal.open(tmp_path / f"alone-{number}", {"test": 1}) as journal:
            result = run_strategy(task_of(own, journal, strategy=cell.strategy, data=DATA, settings=SMALL), steps=STEPS)
        alone += len(own.asked)
        assert [one.candidate for one in cell.prefixes] == [one.candidate for one in result.prefixes]
        assert [one.evidence for one in cell.steps] == [one.evidence for one in result.steps]
        assert cell.shipped == result.shipped
        assert cell.shipped_reports["test"].scores == result.reports["shipped"]["test"].scores
        assert cell.reports["dev"].scores == result.prefixes[-1].dev.scores
    assert len(backend.asked) < alone / 2


def test_prompts_after_prompts_is_no_repetition(undisturbed: tuple[tuple[Cell, ...], RuleBackend]) -> None:
    by_name = {cell.strategy: cell for cell in undisturbed[0]}
    first, second = by_name[P, P].steps
    assert first == by_name[P,].steps[0]
    assert first.evidence["candidates"] != second.evidence["candidates"]


def test_neither_order_nor_number_of_strategies_changes_a_number(
    tmp_path: Path, undisturbed: tuple[tuple[Cell, ...], RuleBackend]
) -> None:
    expected = facts(undisturbed[0])
    turned = swept(tmp_path / "turned", RuleBackend(rule=sometimes), strategies=PAPER[::-1])
    assert facts(turned) == expected
    assert [cell.strategy for cell in turned] == list(PAPER)
    few = facts(swept(tmp_path / "few", RuleBackend(rule=sometimes), strategies=((T, P, T), (P, T))))
    assert few == {key: expected[key] for key in few}
    assert len(few) == 2


def test_killed_again_and_again_it_ends_the_same_and_repeats_nothing(
    tmp_path: Path, undisturbed: tuple[tuple[Cell, ...], RuleBackend]
) -> None:
    cells, first = undisturbed
    asked = 0
    while True:
        backend = RuleBackend(rule=sometimes, die_after=17)
        try:
            again = swept(tmp_path / "journal", backend)
        except Killed:
            asked += len(backend.asked)
            continue
        asked += len(backend.asked)
        break
    assert facts(again) == facts(cells)
    assert asked == len(first.asked)


def test_a_seed_or_strategy_added_later_takes_over_what_is_there(tmp_path: Path) -> None:
    swept(tmp_path / "grown", RuleBackend(rule=sometimes), strategies=((P, T),))
    more = RuleBackend(rule=sometimes)
    grown = swept(tmp_path / "grown", more, strategies=((P, T), (P, T, P), (T,)), seeds=(0, 1))
    whole = RuleBackend(rule=sometimes)
    at_once = swept(tmp_path / "at once", whole, strategies=((P, T), (P, T, P), (T,)), seeds=(0, 1))
    assert facts(grown) == facts(at_once)
    assert len(more.asked) < len(whole.asked)


def test_the_test_split_is_scored_once_a_cell(tmp_path: Path) -> None:
    backend = RuleBackend(rule=sometimes)
    swept(tmp_path / "journal", backend)
    asked = Counter(
        (one.value("Text"), one.adapter, one.demo_texts) for one in backend.asked if " test " in one.value("Text")
    )
    assert set(asked.values()) == {1}
    assert len(asked) <= len(DATA.test) * len(PAPER)


@pytest.mark.parametrize(
    "error",
    [
        CompileError.of("BTC401", "nothing to learn from", notes=("`self`: 0 of 8 examples",)),
        BackendError.of("BTC409", "a full set of weights is not served"),
    ],
    ids=["nothing to learn from", "trained and not served"],
)
def test_what_cannot_run_says_why_and_the_others_go_on(tmp_path: Path, error: BtcError) -> None:
    def needs_demos(context: Any, candidate: Any) -> Any:
        if not candidate.prompts["classify"].demos:
            raise error
        return train_by_name(context, candidate)

    steps = {"prompts": prompts_step, "weights": needs_demos}
    cells = swept(tmp_path / "journal", RuleBackend(rule=sometimes), steps=steps, seeds=(0, 1))
    failed = {label(cell.strategy): label(cell.failed_at) for cell in cells if cell.failure is not None}
    assert failed == {"Θ": "Θ", "Θ→Θ": "Θ", "Θ→Π": "Θ", "Θ→Π→Θ": "Θ"}
    assert all(cell.reports == {} for cell in cells if cell.failure is not None)
    table = sweep_table(cells, binary=True, data=SIZES)
    assert [row["mean"] is None for row in table["rows"]] == [label(one) in failed for one in PAPER]
    assert table["best_single"]["strategy"] == "Π"
    (failure,) = table["failures"]
    alone = sweep_table([cell for cell in cells if cell.strategy == (T,)], binary=True, data=SIZES)
    assert (alone["split"], alone["n"], alone["best_single"]) == ("test", 4, None), "as of the data, not of the scores"
    assert failure["strategies"] == ["Θ", "Θ→Θ", "Θ→Π", "Θ→Π→Θ"]
    assert (failure["at"], failure["seeds"], failure["code"]) == ("Θ", [0, 1], error.diagnostics[0].code)


def test_without_train_examples_vanilla_is_scored_all_the_same(tmp_path: Path) -> None:
    cells = swept(tmp_path / "journal", RuleBackend(rule=sometimes), data=splits(train=0, dev=6, test=4))
    assert [cell.failure and cell.failure.code for cell in cells] == [None, *["BTC451"] * 8]


def test_a_journal_that_cannot_be_used_stops_the_sweep(tmp_path: Path) -> None:
    def full(context: Any, candidate: Any) -> Any:
        raise CompileError.of("BTC462", "no space is left")

    with pytest.raises(CompileError, match="BTC462"):
        swept(tmp_path / "journal", RuleBackend(rule=sometimes), steps={"prompts": full, "weights": full})


def test_an_engine_that_is_gone_stops_the_sweep(tmp_path: Path) -> None:
    def gone(context: Any, candidate: Any) -> Any:
        raise BackendError.of("BTC533", "no endpoint answers")

    with pytest.raises(BackendError, match="BTC533"):
        swept(tmp_path / "journal", RuleBackend(rule=sometimes), steps={"prompts": gone, "weights": gone})


# ---- the table


def test_the_tables_numbers_are_those_of_the_reports(tmp_path: Path) -> None:
    cells = swept(tmp_path / "journal", RuleBackend(rule=sometimes), seeds=(3, 1, 2))
    table = sweep_table(cells, binary=True, data=SIZES)
    assert (table["split"], table["n"], table["seeds"]) == ("test", 4, [1, 2, 3])
    assert [row["strategy"] for row in table["rows"]] == [label(one) for one in PAPER]
    by_cell = {(label(cell.strategy), cell.seed): cell for cell in cells}
    singles = {name: mean(by_cell[name, seed].reports["dev"].mean for seed in (1, 2, 3)) for name in ("Π", "Θ")}
    best = max(singles, key=lambda name: singles[name])
    assert table["best_single"] == {"strategy": best, "steps": [P if best == "Π" else T], "by": "dev"}
    for row in table["rows"]:
        own = [by_cell[row["strategy"], seed] for seed in (1, 2, 3)]
        means = [cell.reports["test"].mean for cell in own]
        assert [one["mean"] for one in row["by_seed"]] == means
        assert row["mean"] == pytest.approx(mean(means))
        assert row["sd"] == pytest.approx(stdev(means))
        assert row["shipped"] == pytest.approx(mean(cell.shipped_reports["test"].mean for cell in own))
        if row["strategy"] == best:
            assert row["difference"] is None
            continue
        apart = [one - by_cell[best, seed].reports["test"].mean for one, seed in zip(means, (1, 2, 3), strict=True)]
        assert row["difference"]["mean"] == pytest.approx(mean(apart))
        assert [one["mean"] for one in row["difference"]["by_seed"]] == pytest.approx(apart)
        assert row["difference"]["low"] <= row["difference"]["mean"] + 1e-9
        assert row["difference"]["high"] >= row["difference"]["mean"] - 1e-9
    assert len(table["steps"]) == 3 * 8
    assert table["steps_named"] == 3 * 16


def test_one_seed_is_compared_as_pairs_of_answers_and_has_no_spread(
    undisturbed: tuple[tuple[Cell, ...], RuleBackend],
) -> None:
    table = sweep_table(undisturbed[0], binary=True, data=SIZES)
    for row in table["rows"]:
        assert row["sd"] is None
        if row["difference"] is not None:
            assert row["difference"]["method"] == "newcombe"
            assert row["difference"]["low"] == row["difference"]["by_seed"][0]["low"]


def scored(
    undisturbed: tuple[tuple[Cell, ...], RuleBackend], seed: int, strategy: tuple[str, ...], scores: tuple[float, ...]
) -> Cell:
    """A cell with these scores on every split."""
    cell = next(one for one in undisturbed[0] if one.strategy == (P,))
    reports = {
        name: replace(report, scores=tuple((f"e{i}", score) for i, score in enumerate(scores)), mean=mean(scores))
        for name, report in cell.reports.items()
    }
    return replace(cell, seed=seed, strategy=strategy, reports=reports)


def test_two_strategies_that_answer_alike_at_every_seed_are_not_held_wide_apart(
    undisturbed: tuple[tuple[Cell, ...], RuleBackend],
) -> None:
    right = {1: (1.0,) * 46 + (0.0,) * 4, 2: (0.0,) * 3 + (1.0,) * 47}
    cells = [
        scored(undisturbed, seed, strategy, scores) for strategy in ((P,), (P, P)) for seed, scores in right.items()
    ]
    row = next(one for one in sweep_table(cells, binary=True, data=SIZES)["rows"] if one["strategy"] == "Π→Π")
    assert row["difference"]["mean"] == 0
    assert row["difference"]["method"] == "adjusted-t"
    assert 0 < row["difference"]["high"] < 0.1


def test_a_few_examples_that_some_seeds_answer_do_not_tell_two_strategies_apart(
    undisturbed: tuple[tuple[Cell, ...], RuleBackend],
) -> None:
    cells = [
        scored(undisturbed, seed, strategy, (1.0,) * right + (0.0,) * (50 - right))
        for strategy, solved in {(P,): (0, 0, 0), (P, P): (3, 1, 0)}.items()
        for seed, right in enumerate(solved)
    ]
    row = next(one for one in sweep_table(cells, binary=True, data=SIZES)["rows"] if one["strategy"] == "Π→Π")
    assert row["difference"]["mean"] == pytest.approx(4 / 150)
    assert -0.1 < row["difference"]["low"] < 0 < row["difference"]["high"] < 0.15


def test_without_dev_and_without_single_steps(tmp_path: Path) -> None:
    data = splits(train=8, dev=0, test=4)
    cells = swept(tmp_path / "journal", RuleBackend(rule=sometimes), data=data)
    assert sweep_table(cells, binary=True, data=SIZES | {"dev": 0})["best_single"]["by"] == "test"
    alone = swept(tmp_path / "alone", RuleBackend(rule=sometimes), strategies=((P, T),))
    table = sweep_table(alone, binary=True, data=SIZES)
    assert table["best_single"] is None
    assert table["rows"][0]["difference"] is None


def test_the_order_of_the_paper() -> None:
    assert in_order([(T, P, T), (P,), (T, T, T, T), (), (P,), (P, P, P)]) == (
        (),
        (P,),
        (T, P, T),
        (P, P, P),
        (T, T, T, T),
    )


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


def test_where_rows_depend_on_their_batch_branches_do_not_meet(tmp_path: Path) -> None:
    undisturbed = MoodyBackend()
    expected = facts(swept(tmp_path / "all", undisturbed, whole=True))
    few = facts(swept(tmp_path / "few", MoodyBackend(), strategies=((T, P), (P, T)), whole=True))
    assert few == {key: expected[key] for key in few}
    for kill in (len(undisturbed.asked) // 3, len(undisturbed.asked) - 5):
        with pytest.raises(Killed):
            swept(tmp_path / f"killed-{kill}", MoodyBackend(die_after=kill), whole=True)
        assert facts(swept(tmp_path / f"killed-{kill}", MoodyBackend(), whole=True)) == expected


def test_a_branch_keeps_its_steps_to_itself_and_shares_measured_choices(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal", {"test": 1}) as journal:
        one, other = (Branch(journal, seed=0, steps=(first, T), apart=True) for first in (P, T))
        root = Branch(journal, seed=0, steps=(), apart=True)
        assert one.step_folder(2) != other.step_folder(2)
        assert Branch(journal, seed=1, steps=(P, T)).step_folder(2) != one.step_folder(2)
        assert Branch(journal, seed=0, steps=(P,)).step_folder(1) == one.step_folder(1)
        assert one.memo("dtype", lambda: "a") == other.memo("dtype", lambda: "b") == "a"
        assert one.step_memo(2, "account", lambda: 1) == 1
        assert other.step_memo(2, "account", lambda: 2) == 2
        said = Completion(text="x", finish="stop", prompt_tokens=1, completion_tokens=1)
        one.completions.put("key", said)
        assert other.completions.get("key") is None
        root.completions.put("key", said)
        assert other.completions.get("key") is not None
