"""From a spec to a table, text, Markdown and page, on engines that answer by a rule; lists on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, Killed, RuleBackend, coin, train_by_name, truth, wrong
from said import Said

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.artifact.sweep_files import sweep_markdown, sweep_page, sweep_text
from bt_compiler.cli.main import main
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.sweep import SweepSettings, Swept, parse_seeds, parse_strategies, spread, sweep_spec
from bt_compiler.errors import BundleError, CompileError, SpecError, UsageError
from bt_compiler.graph.candidate import Candidate
from bt_compiler.optimize.journal import Journal
from bt_compiler.optimize.prompts import prompts_step
from bt_compiler.optimize.step import StepContext, StepResult
from bt_compiler.optimize.sweep import PAPER

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from tiny_lm import make_tiny_lm

SPEC = """\
version: 1
name: moods
model: {id: rule, engine: scripted}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
modules:
  classify:
    signature:
      instructions: Say the mood.
      inputs: {text: str}
      outputs: {mood: {enum: [good, bad]}}
metric: {kind: accuracy, output: mood}
optimize: {prompts: {candidates: 1}}
"""
STEPS = {"prompts": prompts_step, "weights": train_by_name}


def sometimes(asked: Asked) -> str:
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts, asked.adapter) < 0.3 + 0.2 * asked.demos
    return f"Mood: {truth(text) if solved else wrong(text)}"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for split, count in (("train", 10), ("dev", 6), ("test", 5)):
        rows = [{"text": f"{'gb'[n % 2]} {split} {n}", "mood": ("good", "bad")[n % 2]} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "moods.yaml"
    path.write_text(SPEC)
    return path


Sweep = Callable[..., tuple[Swept, list[RuleBackend]]]


def test_a_model_whose_window_is_too_short_keeps_no_other_from_its_table(spec: Path, tmp_path: Path) -> None:
    def opener(section: Any, _choices: Any) -> RuleBackend:
        return RuleBackend(rule=sometimes, context_window=5 if section.id == "short" else 100_000)

    settings = SweepSettings(
        out=tmp_path / "sweep",
        cache=tmp_path / "cache",
        opener=opener,
        strategies=((),),
        seeds=(0,),
        overrides=("model.id=short,long",),
    )
    with pytest.raises(SpecError, match="BTC523"):
        sweep_spec(spec, settings)
    (table,) = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["tables"]
    assert "long" in json.dumps(table)


@pytest.fixture
def sweep(spec: Path, tmp_path: Path) -> Sweep:
    """Sweeps into `moods-sweep`; gives what came of it and the models that were opened."""

    def swept(*, die_after: int | None = None, **settings: Any) -> tuple[Swept, list[RuleBackend]]:
        opened: list[RuleBackend] = []

        def opener(_section: Any, _choices: Any) -> RuleBackend:
            opened.append(RuleBackend(rule=sometimes, die_after=die_after))
            return opened[-1]

        chosen = {"steps": STEPS, "seeds": (0, 1), "cache": tmp_path / "cache", **settings}
        return sweep_spec(spec, SweepSettings(out=tmp_path / "moods-sweep", opener=opener, **chosen)), opened

    return swept


def test_strategies_with_weights_that_a_teacher_helps_are_added_to_those_without(sweep: Sweep, tmp_path: Path) -> None:
    taught = ("models={big: {id: big, engine: scripted}}", "optimize.weights={sources: [self, teacher], teacher: big}")
    first, (alone,) = sweep(strategies=((), ("prompts",)), overrides=taught)
    more, opened = sweep(strategies=((), ("prompts",), ("weights",)), overrides=taught, cache=tmp_path / "another")
    assert len(opened) == 2 and 0 < sum(len(one.asked) for one in opened) < len(alone.asked)
    assert {table["model"] for table in (*first.document["tables"], *more.document["tables"])} == {"rule"}
    (journal,) = (tmp_path / ".moods-sweep.journals").iterdir()
    assert journal.name.startswith("rule-")


def test_each_of_several_teachers_has_a_journal_of_its_own_and_a_model_that_nothing_calls_none(
    sweep: Sweep, tmp_path: Path
) -> None:
    taught = "optimize.weights={sources: [self, teacher], teacher: big}"
    spare = ("models={big: {id: big, engine: scripted}, spare: {id: spare, engine: scripted}}", taught)
    lists = ("models.big.id=big,huge", "models.spare.id=one,two")
    swept, opened = sweep(strategies=(("weights",),), seeds=(0,), overrides=(*spare, *lists))
    assert [table["model"] for table in swept.document["tables"]] == ["rule, big", "rule, huge"]
    assert len(swept.document["tables"]) == len(list((tmp_path / ".moods-sweep.journals").iterdir())) == 2
    assert len(opened) == 4
    assert sweep(strategies=(("weights",),), seeds=(0,), overrides=(*spare, *lists))[1] == []


def test_what_check_finds_of_the_data_is_said_once(sweep: Sweep, spec: Path) -> None:
    spec.write_text(SPEC.replace("[good, bad]}}", "[good, bad]}, why: str}"))
    for strategies, expected in (
        (((), ("weights",)), ["note[BTC336]: no train row has a label for output `why`"]),
        (((),), []),
    ):
        told = Said()
        sweep(strategies=strategies, seeds=(0,), overrides=["model.id=one,two"], progress=told)
        assert [line.partition(", so that")[0] for line in told.lines if "[BTC" in line] == expected


def test_a_model_that_another_sweep_is_at_work_on_ends_it_before_anything_runs(sweep: Sweep, tmp_path: Path) -> None:
    few = {"strategies": PAPER[:2], "seeds": (0,)}
    sweep(**few, overrides=["model.id=two"])
    (busy,) = (tmp_path / ".moods-sweep.journals").iterdir()
    held = json.loads((busy / "identity.json").read_text())["identity"]
    with Journal.open(busy, held), pytest.raises(CompileError, match="BTC460"):
        sweep(**few, overrides=["model.id=one,two"])
    both, opened = sweep(**few, overrides=["model.id=one,two"])
    assert [table["model"] for table in both.document["tables"]] == ["one", "two"]
    assert len(opened) == 1  # nothing of `one` was there yet


def numbers(document: dict[str, Any]) -> Any:
    """A document less what its steps cost."""
    return {**document, "tables": [{**table, "steps": None} for table in document["tables"]]}


def test_a_sweep_writes_table_text_and_page(sweep: Sweep) -> None:
    swept, (backend,) = sweep()
    assert backend.closed
    (table,) = swept.document["tables"]
    assert [row["strategy"] for row in table["rows"]][:3] == ["vanilla", "Π", "Θ"]
    assert sorted(one.name for one in swept.folder.iterdir()) == ["report.html", "sweep.json", "sweep.md"]
    assert json.loads((swept.folder / "sweep.json").read_text()) == swept.document
    text, markdown = sweep_text(swept.document), sweep_markdown(swept.document)
    assert text.startswith("moods on rule: accuracy, test, n=5, seeds 0, 1\n\nstrategy  mean ")
    assert (swept.folder / "sweep.md").read_text() == markdown
    for row in table["rows"]:
        shown = f"{row['mean']:.3f}".removeprefix("0") if row["mean"] < 1 and row["mean"] else f"{row['mean']:.3f}"
        assert f"| {row['strategy']} | {shown} |" in markdown
        assert any(line.split()[:2] == [row["strategy"], shown] for line in text.splitlines())
    page = (swept.folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page and "Paired difference" in page


def test_scores_are_those_of_a_compile_of_the_strategy(sweep: Sweep, spec: Path, tmp_path: Path) -> None:
    (swept, _) = sweep(seeds=(1,))
    rows = {row["strategy"]: row for row in swept.document["tables"][0]["rows"]}
    for name, strategy in (("Π→Π", "[prompts, prompts]"), ("vanilla", "[]")):
        settings = CompileSettings(
            out=tmp_path / f"bundle-{len(strategy)}",
            cache=tmp_path / "other cache",
            overrides=[f"optimize.strategy={strategy}"],
            seed=1,
            opener=lambda *_: RuleBackend(rule=sometimes),
        )
        scores = read_bundle(compile_with(spec, settings)).manifest.scores
        assert rows[name]["shipped"] == scores["shipped"]["test"]["mean"]


def test_killed_anywhere_the_same_command_ends_the_same(sweep: Sweep, tmp_path: Path) -> None:
    undisturbed, (backend,) = sweep(cache=tmp_path / "first")
    calls = len(backend.asked)
    asked = 0
    with pytest.raises(Killed):
        sweep(fresh=True, die_after=calls // 3, cache=tmp_path / "second")
    with pytest.raises(Killed):
        sweep(die_after=calls // 3, cache=tmp_path / "second")
    again, (backend,) = sweep(cache=tmp_path / "second")
    asked = 2 * (calls // 3) + len(backend.asked)
    assert numbers(again.document) == numbers(undisturbed.document)
    assert asked == calls


def test_a_finished_sweep_opens_no_model(sweep: Sweep) -> None:
    first, _ = sweep()
    again, opened = sweep(strategies=PAPER[::-1], seeds=(1, 0, 1))
    assert opened == []
    assert again.document == first.document


def test_several_models_have_a_table_each_and_one_may_be_added_later(sweep: Sweep) -> None:
    few = PAPER[:2]
    first, opened = sweep(strategies=few, overrides=["model.id=one"])
    assert len(opened) == 1
    both, opened = sweep(strategies=few, overrides=["model.id=one,two"])
    assert len(opened) == 1, "the first model's table is taken over"
    assert [table["model"] for table in both.document["tables"]] == ["one", "two"]
    assert both.document["tables"][0] == first.document["tables"][0]
    assert sweep_text(both.document).count("\nvanilla ") == 2


def test_a_remote_model_cannot_be_trained_and_its_table_says_so(sweep: Sweep) -> None:
    swept, _ = sweep(steps=SweepSettings().steps)  # the real weights step on an engine that lends no weights
    (table,) = swept.document["tables"]
    assert [row["strategy"] for row in table["rows"] if row["mean"] is not None] == ["vanilla", "Π", "Π→Π"]
    assert {one["code"] for one in table["failures"]} == {"BTC406"}
    text = sweep_text(swept.document)
    assert "\nΘ         —\n" in text
    assert "— Θ, Θ→Θ, Θ→Π, Θ→Π→Θ: BTC406 at Θ, seed 0, 1: the weights of `classify`" in text
    assert "could not run at seed 0, 1" in sweep_page(swept.document)


def test_a_sweep_that_scored_nothing_says_so_and_fails(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = ("model.engine=openai", "model.endpoints=[http://localhost:1/v1]")
    told = Said()
    swept, _ = sweep(strategies=(("weights",),), overrides=remote, steps=SweepSettings().steps, progress=told)
    assert told.lines.count("warning[BTC125]: `weights` of model `default`, whose weights are not at hand") == 1
    text = sweep_text(swept.document)
    assert text.startswith("moods on rule: accuracy, test, n=5, seeds 0, 1\n")
    assert "there is no test split" not in text and "put Π and Θ" not in text
    monkeypatch.setattr("bt_compiler.compiler.sweep.sweep_spec", lambda *_: swept)
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit) as left:
            main(["sweep", "moods.yaml", *more])
        shown = capsys.readouterr()
        assert left.value.code == 1
        assert ("error[BTC456]: no strategy could run on `rule`: BTC406 at Θ" in shown.err) == (not more)
    document = json.loads(shown.out)
    assert (document["ok"], [one["code"] for one in document["diagnostics"]]) == (False, ["BTC456"])


def test_what_an_earlier_sweep_had_and_this_one_does_not_name_is_said(sweep: Sweep) -> None:
    def dropped(models: str, **named: Any) -> list[str]:
        told = Said()
        sweep(overrides=[f"model.id={models}"], progress=told, **named)
        return [line.partition(" held ")[2].partition(", which")[0] for line in told.lines if "drops from" in line]

    assert dropped("one,two", strategies=PAPER[:2]) == []
    assert dropped("one,two", strategies=PAPER[:3]) == []
    assert dropped("two,three", strategies=PAPER[1:3], seeds=(1, 2)) == ["model one; strategy vanilla; seed 0"]
    assert dropped("one,two,three", strategies=PAPER[:3], seeds=(0, 1, 2)) == []


def test_what_failed_is_tried_again(sweep: Sweep) -> None:
    def killed(context: StepContext, candidate: Candidate) -> StepResult:
        raise CompileError.of("BTC421", "a process of training died", help="the same command goes on")

    few = PAPER[:3]
    undisturbed, _ = sweep(strategies=few, fresh=True)
    first, (_,) = sweep(strategies=few, fresh=True, steps={**STEPS, "weights": killed})
    assert [one["code"] for one in first.document["tables"][0]["failures"]] == ["BTC421"]
    again, (after,) = sweep(strategies=few)
    assert numbers(again.document) == numbers(undisturbed.document)
    assert not after.asked, "all of it is in the cache: only the step that failed runs again"
    assert sweep(strategies=few)[1] == [], "a table without failures is kept"


def test_the_specs_own_strategy_is_not_looked_at(sweep: Sweep, spec: Path) -> None:
    first, _ = sweep(strategies=PAPER[:2])
    spec.write_text(SPEC.replace("{prompts:", "{strategy: [prompts, prompts], prompts:"))
    again, opened = sweep(strategies=PAPER[:2])
    assert opened == []
    assert again.document == first.document


def test_a_mistake_in_any_spec_is_found_before_anything_runs(sweep: Sweep, tmp_path: Path) -> None:
    for wrong_setting in ("model.engine=nonsense", "model.id=rule,"):
        with pytest.raises((SpecError, UsageError)):
            sweep(overrides=[wrong_setting])
    assert not list(tmp_path.glob(".moods-sweep*"))


def test_what_training_lacks_is_found_before_anything_runs(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bt_compiler.compiler.identity.find_spec", lambda name: None)
    rounded = ["optimize.weights.quantize=4bit"]
    with pytest.raises(CompileError, match="BTC424"):
        sweep(strategies=PAPER[:3], overrides=rounded)
    spread = tmp_path / "zero.yaml"
    spread.write_text("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: 2}\n")
    with pytest.raises(CompileError, match="BTC425"):
        sweep(strategies=PAPER[:3], overrides=[f"optimize.weights.launch={{config: {spread}}}"])
    with pytest.raises(SpecError, match=r"BTC420.*cannot be read"):
        sweep(strategies=PAPER[:3], overrides=[f"optimize.weights.launch={{config: {tmp_path / 'gone.yaml'}}}"])
    assert not list(tmp_path.glob(".moods-sweep*"))
    assert len(sweep(strategies=PAPER[:2], overrides=rounded)[1]) == 1, "nothing is to be trained"


def test_another_teacher_makes_another_table(sweep: Sweep, tmp_path: Path) -> None:
    teacher = make_tiny_lm(tmp_path / "teacher", ["good"])
    taught = [f"models.big={{id: {teacher}}}", "optimize.weights.teacher=big"]
    _, first = sweep(strategies=PAPER[:3], overrides=taught)
    assert first and sweep(strategies=PAPER[:3], overrides=taught)[1] == []
    make_tiny_lm(tmp_path / "teacher", ["good"], seed=1)
    _, again = sweep(strategies=PAPER[:3], overrides=taught)
    assert again, "the teacher's weights have changed"


def test_fewer_strategies_leave_the_journal_as_it_is(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 2\n")
    launched = [f"optimize.weights.launch={{config: {tmp_path / 'two.yaml'}}}"]
    sweep(strategies=PAPER[:3], overrides=launched)
    sweep(strategies=PAPER[:1], overrides=launched)
    assert sweep(strategies=PAPER[:3], overrides=launched)[1] == []
    (tmp_path / "two.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: 3\n")
    assert sweep(strategies=PAPER[:3], overrides=launched)[1], "sums over three processes have another order"


def test_a_folder_of_something_else_is_refused_before_anything_runs(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "moods-sweep"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"BTC560.*not the folder of a sweep"):
        sweep()
    assert not list(tmp_path.glob(".moods-sweep*")) and len(list(folder.iterdir())) == 1
    (folder / "manifest.json").unlink()
    (folder / "report.html").write_text("of a sweep that was killed while it wrote")
    swept, _ = sweep(strategies=PAPER[:2])
    (folder / "notes.txt").write_text("mine")
    again, _ = sweep(strategies=PAPER[:2])
    assert again.document == swept.document and (folder / "notes.txt").exists()


def test_without_a_test_split_dev_is_shown_and_said(sweep: Sweep, spec: Path) -> None:
    spec.write_text(SPEC.replace(", test: test.jsonl", ""))
    swept, _ = sweep(strategies=PAPER[:3])
    assert swept.document["tables"][0]["split"] == "dev"
    assert "there is no test split: these are dev scores, and dev also chose" in sweep_text(swept.document)


def test_a_page_shows_untrusted_text_as_text(sweep: Sweep) -> None:
    swept, _ = sweep(strategies=PAPER[:2], overrides=["model.id=<script>alert(1)</script>"])
    page = sweep_page(swept.document)
    assert "<script" not in page and "alert(1)" in page


def test_strategies_by_their_spellings() -> None:
    assert parse_strategies("all") == PAPER
    for text in ("Π,Θ,Π→Θ", "prompts, weights, prompts+weights", "prompts->weights,Θ,Π,Π"):
        assert parse_strategies(text) == (("prompts",), ("weights",), ("prompts", "weights"))
    assert parse_strategies("weights,vanilla") == ((), ("weights",))
    for text in ("promts", "Π→", "", "Π,,Θ", "all,Π"):
        with pytest.raises(UsageError, match="BTC585"):
            parse_strategies(text)


def test_seeds() -> None:
    assert parse_seeds("2,0, 1,2") == (0, 1, 2)
    for text in ("", "0,", "-1", "a", "0.5"):
        with pytest.raises(UsageError, match="BTC585"):
            parse_seeds(text)


def test_several_values_of_a_model_and_of_nothing_else() -> None:
    assert spread(["data.limit=5", "model.id=a, b,a"]) == [
        ("data.limit=5", "model.id=a"),
        ("data.limit=5", "model.id=b"),
    ]
    assert spread(["model=[a, b]"]) == [("model=a",), ("model=b",)]
    assert spread(["models.small.id=a,b", "model=c"]) == [
        ("models.small.id=a", "model=c"),
        ("models.small.id=b", "model=c"),
    ]
    for one in ("model={id: a, engine: b}", "optimize.prompts.train=1,2", "name=a,b", 'model.id="a,b"'):
        assert spread([one]) == [(one,)]
    with pytest.raises(UsageError, match="BTC585"):
        spread(["model.id=a,"])


def test_a_mistake_on_the_command_line_is_a_message(spec: Path) -> None:
    command = [sys.executable, "-m", "bt_compiler", "sweep", str(spec), "--strategies", "promts"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=spec.parent)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        "error[BTC585]: unknown step `promts` in strategy `promts`\n  = help: did you mean `prompts`?"
    )
    assert not (spec.parent / "artifacts").exists()
