"""From a spec file to a bundle on an engine that answers by a rule: resume, up to date, starting over, bad places."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, Killed, RuleBackend, coin, truth, wrong
from said import Said

import bt_compiler.compiler.compile as story
from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.check import checked
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.compiler.identity import compile_identity
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.templates import template_folder
from bt_compiler.errors import BackendError, BtcError, BundleError, CompileError, DataError, SpecError
from bt_compiler.optimize.journal import Journal, journal_folder

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
optimize: {strategy: [prompts, prompts], prompts: {candidates: 2}}
"""


def sometimes(asked: Asked) -> str:
    text = asked.value("Text")
    solved = coin(text, asked.demo_texts) < 0.3 + 0.2 * asked.demos
    return f"Mood: {truth(text) if solved else wrong(text)}"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("dev", 8), ("test", 5)):
        rows = [{"text": f"{'gb'[n % 2]} {split} {n}", "mood": ("good", "bad")[n % 2]} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "moods.yaml"
    path.write_text(SPEC)
    return path


Compile = Callable[..., tuple[str, RuleBackend, list[str]]]


@pytest.fixture
def run(spec: Path, tmp_path: Path) -> Compile:
    """Compiles into `out` (a name) with a cache of that name; gives digest, backend and what was said."""

    def compiled(out: str = "bundle", *, die_after: int | None = None, cache: str = "cache", **settings: Any) -> Any:
        backend = RuleBackend(rule=sometimes, die_after=die_after)
        lines = Said()
        settings = {"opener": lambda _section, _choices: backend, **settings}
        folder = compile_with(
            spec,
            CompileSettings(
                out=tmp_path / "artifacts" / out,
                cache=tmp_path / cache,
                progress=lines,
                **settings,
            ),
        )
        assert backend.closed or not backend.asked
        return read_bundle(folder).manifest.digest, backend, lines.lines

    return compiled


def test_a_compile_writes_a_bundle_with_scores_and_lineage(run: Compile, tmp_path: Path) -> None:
    _, backend, said = run()
    bundle = read_bundle(tmp_path / "artifacts" / "bundle")
    assert backend.asked
    assert bundle.manifest.strategy == ("prompts", "prompts")
    assert set(bundle.manifest.scores) >= {"zero_shot", "shipped"}
    assert bundle.manifest.scores["shipped"]["test"]["n"] == 5
    assert bundle.manifest.scores["shipped"]["dev"]["mean"] > bundle.manifest.scores["zero_shot"]["dev"]["mean"]
    assert bundle.candidate.prompts["classify"].demos
    assert any("zero-shot: dev" in line for line in said)
    report = json.loads((bundle.folder / "report.json").read_text())
    assert "scripted" in json.dumps(report)
    assert [len(prefix["steps"]) for prefix in report["prefixes"]] == [0, 1, 2]


def test_the_same_command_again_is_up_to_date(run: Compile) -> None:
    digest, _, _ = run()
    again, backend, said = run()
    assert again == digest
    assert backend.asked == []
    assert any("up to date" in line for line in said)


def test_a_module_that_no_example_could_be_asked_with_ends_it_before_anything_runs(run: Compile) -> None:
    short = RuleBackend(rule=sometimes, context_window=50)
    with pytest.raises(SpecError) as caught:
        run(opener=lambda *_: short, overrides=[f"modules.classify.signature.instructions={'word ' * 60}"])
    (item,) = caught.value.diagnostics
    assert item.code == "BTC523" and "module `classify`" in item.message and "context window of 50" in item.message
    assert item.span is not None and item.span.source.name == "--set #1"
    assert short.asked == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_place_of_something_else_is_refused_before_anything_runs(run: Compile, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "artifacts" / "bundle"
    if kind == "folder":
        out.mkdir(parents=True)
        (out / "notes.txt").write_text("mine")
    elif kind == "file":
        out.parent.mkdir()
        out.write_text("mine")
    else:
        run("elsewhere")
        out.symlink_to(out.with_name("elsewhere"))
    with pytest.raises(BundleError, match="BTC560"):
        run(opener=lambda *_: pytest.fail("a model was opened"))
    assert not journal_folder(out).exists()


def test_a_place_that_was_taken_meanwhile_costs_nothing(run: Compile, tmp_path: Path) -> None:
    out = tmp_path / "artifacts" / "bundle"
    backend = RuleBackend(rule=sometimes)

    def takes_it(*_: Any) -> RuleBackend:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
        return backend

    with pytest.raises(BundleError, match="BTC560") as caught:
        run(opener=takes_it)
    assert "the same command goes on" in str(caught.value.diagnostics[0].help)
    out.rename(out.with_name("moved"))
    _, after, _ = run(cache="other")
    assert backend.asked and not after.asked


def test_another_place_of_the_model_is_written_into_the_bundle_without_a_call(run: Compile, tmp_path: Path) -> None:
    def served(port: int) -> tuple[str, ...]:
        return (f"model={{id: rule, engine: openai, endpoints: ['http://127.0.0.1:{port}/v1']}}",)

    digest, _, _ = run(overrides=served(8001))
    again, backend, said = run(overrides=served(8002), cache="none")
    assert (again, backend.asked) == (digest, [])
    assert not any("up to date" in line or "starting over" in line for line in said)
    assert "127.0.0.1:8002" in (tmp_path / "artifacts" / "bundle" / "spec.yaml").read_text()


@pytest.mark.parametrize(
    "metric",
    [
        "{kind: weighted, output: mood, parts: [{kind: accuracy, weight: 0.9}, {kind: cost, count: calls, at_most: 2, "
        "weight: 0.1}]}",
        "{kind: length, output: mood, at_most: 1}",
    ],
)
def test_metrics_of_an_enum_without_one_label_write_a_bundle_too(run: Compile, tmp_path: Path, metric: str) -> None:
    run(overrides=("metric=null", f"metric={metric}", "optimize.strategy=[]"))
    assert json.loads((tmp_path / "artifacts" / "bundle" / "report.json").read_text())["confusion"] is None


def test_fresh_compiles_again_to_the_same_digest(run: Compile) -> None:
    digest, first, _ = run()
    again, backend, said = run(fresh=True, cache="other-cache")
    assert again == digest
    assert len(backend.asked) == len(first.asked)
    assert not any("up to date" in line for line in said)


def test_why_examples_fail_is_said_and_that_fresh_meets_the_same_answers(run: Compile) -> None:
    broken = RuleBackend(rule=lambda _asked: "Hello")
    _, _, said = run(opener=lambda _section, _choices: broken)
    after = [said[place + 1] for place, line in enumerate(said[:-1]) if line.endswith("failed")]
    assert "zero-shot: dev 0.000" in said[0] and said[0].endswith("n=8, 8 failed")
    assert said[1].startswith("  warning: every example failed: 8 × BTC522 ") and said[1].endswith("'Hello'")
    assert len(after) >= 8 and sum("× BTC522" in line for line in after) >= 5
    assert any(line.endswith("zero-shot 0.000 on inner val, 8 failed") for line in said)
    assert not any("cache" in line for line in said)
    _, mended, said = run(fresh=True)
    assert mended.asked == []
    (line,) = [line for line in said if "cache" in line]
    assert line == f"{len(broken.asked)} answers from the cache of earlier runs; `btc cache --clear` forgets them"
    _, mended, said = run(fresh=True, cache="empty")
    assert mended.asked and not any("failed" in line or "cache" in line for line in said)


def test_a_bundle_that_was_damaged_is_written_again_from_the_journal(run: Compile, tmp_path: Path) -> None:
    digest, _, _ = run()
    (tmp_path / "artifacts" / "bundle" / "prompts.json").write_text("{}")
    again, backend, _ = run(cache="other-cache")
    assert again == digest
    assert backend.asked == []


def test_killed_anywhere_the_same_command_ends_in_the_same_digest(run: Compile) -> None:
    digest, first, _ = run()
    calls = len(first.asked)
    for kill in range(0, calls, 23):
        name = f"killed-{kill}"
        with pytest.raises(Killed):
            run(name, die_after=kill, cache=name)
        again, backend, said = run(name, cache=name)
        assert again == digest
        assert len(backend.asked) == calls - kill
        assert any("resuming" in line for line in said)


def test_a_cache_that_is_partly_warm_from_another_seed_changes_nothing(run: Compile) -> None:
    digest, first, _ = run(cache="cold")
    run("other", seed=1, cache="shared")
    again, backend, _ = run("warm", cache="shared")
    assert again == digest
    assert 0 < len(backend.asked) < len(first.asked)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: {"seed": 1}, "seed"),
        (lambda folder: {"overrides": ["optimize.prompts.candidates=3"]}, "spec optimize"),
        (lambda folder: (folder / "dev.jsonl").write_text('{"text": "g new", "mood": "good"}\n') and {}, "data dev"),
    ],
)
def test_a_change_starts_over_and_says_why(run: Compile, tmp_path: Path, change: Any, why: str) -> None:
    digest, _, _ = run()
    again, _, said = run(**change(tmp_path))
    assert again != digest
    assert [line for line in said if "starting over" in line] == [
        f"starting over, for this has changed since the last compile: {why}"
    ]


@pytest.mark.parametrize("when", ["opening", "first answer", "first answer after some of the cache"])
def test_a_changed_compile_that_cannot_start_costs_the_earlier_one_nothing(run: Compile, when: str) -> None:
    """As with a mistyped model of a server; or with a key that is asked for completions alone."""
    digest, _, _ = run("bundle")

    def down(*_: Any) -> RuleBackend:
        if when == "opening":
            raise BackendError.of("BTC530", "the server has no model `rul`")
        return RuleBackend(rule=sometimes, die_after=0)

    cache = "cache" if "cache" in when else "empty"
    with pytest.raises((BackendError, Killed)):
        run(opener=down, cache=cache, overrides=["optimize.prompts.candidates=4"])
    again, backend, said = run(cache="other")
    assert (again, backend.asked) == (digest, [])
    assert any("up to date" in line for line in said)


def test_settings_that_no_step_reads_start_nothing_over(run: Compile, tmp_path: Path) -> None:
    run()
    _, backend, said = run(cache="another", overrides=["optimize.weights={epochs: 7, sources: [gold], r: 3}"])
    assert not backend.asked and not any("starting over" in line for line in said)
    assert "epochs: 7" in (tmp_path / "artifacts" / "bundle" / "spec.yaml").read_text()
    weights = ["optimize.strategy=[weights]"]
    of_weights = {name: _identity(tmp_path, [*weights, f"optimize.prompts.{name}=2"]) for name in ("candidates", "val")}
    plain = _identity(tmp_path, weights)
    assert of_weights["candidates"] == plain != of_weights["val"], "new weights are scored on the inner val"


def _identity(folder: Path, overrides: list[str]) -> dict[str, Any]:
    spec = checked(folder / "moods.yaml", overrides)
    return compile_identity(spec, seed=0, cache_root=folder / "cache", progress=Silent())


def test_the_users_own_format_file_is_part_of_what_a_compile_is(run: Compile, spec: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text((template_folder() / "prompts" / "fields.jinja").read_text())
    spec.write_text(SPEC + "format: own.jinja\n")
    digest, _, _ = run()
    own.write_text(own.read_text().replace("You are given", "There is"))
    again, backend, said = run()
    assert again != digest
    assert backend.asked
    assert any(line.endswith(f"since the last compile: format {own}") for line in said)


@pytest.mark.parametrize("changed", ["own_scores/__init__.py", "own_scores/words.py"])
def test_the_code_of_an_installed_metric_is_part_of_what_a_compile_is(
    run: Compile, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """A package that is installed editable changes, and its version stays."""
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)
    package, info = tmp_path / "source" / "own_scores", tmp_path / "installed" / "own_scores-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder.parent))
    (package / "__init__.py").write_text("def ours(*, inputs, outputs, labels, steps):\n    return 1.0\n")
    (package / "words.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-scores\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bt_compiler.metrics]\nours = own_scores:ours\n")
    spec.write_text(SPEC.replace("metric: {kind: accuracy, output: mood}", "metric: {kind: ours}"))
    run()
    assert any("up to date" in line for line in run()[2])
    path = package.parent / changed
    path.write_text(path.read_text() + "\n# another way\n")
    assert any(line.endswith("since the last compile: code of metric ours") for line in run()[2])


def test_the_second_compile_into_a_folder_is_refused(run: Compile, tmp_path: Path) -> None:
    digest, _, _ = run()
    with (
        Journal.open(journal_folder(tmp_path / "artifacts" / "bundle"), {"other": 1}),
        pytest.raises(CompileError, match="BTC460"),
    ):
        run()
    assert read_bundle(tmp_path / "artifacts" / "bundle").manifest.digest == digest


def test_a_place_that_cannot_be_written_is_a_clear_error(run: Compile, tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    with pytest.raises(CompileError, match="BTC461"):
        run()


def test_a_full_disk_is_a_clear_error_and_the_old_bundle_is_intact(
    run: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _, _ = run()

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(story, "run_strategy", lambda *_args, **_kwargs: full())
        with pytest.raises(CompileError, match="BTC462"):
            run(seed=1)
    assert read_bundle(tmp_path / "artifacts" / "bundle").manifest.digest == digest
    again, _, _ = run(seed=1)
    assert again != digest


def test_ctrl_c_passes_through_and_leaves_a_journal_to_resume(run: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, first, _ = run(cache="first")

    answer = RuleBackend.poll

    def poll(self: RuleBackend) -> Any:
        if len(self.asked) >= 20:
            raise KeyboardInterrupt
        return answer(self)

    with monkeypatch.context() as patch:
        patch.setattr(RuleBackend, "poll", poll)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", cache="second")
    again, backend, _ = run("stopped", cache="second")
    assert again == digest
    assert len(backend.asked) == len(first.asked) - 20


def test_a_bundle_written_again_took_as_long_as_its_steps(run: Compile, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "bundle"
    run(clock=map(float, itertools.count()).__next__)
    shutil.rmtree(folder)
    run(clock=lambda: 0.0)
    report = json.loads((folder / "report.json").read_text())
    assert read_bundle(folder).manifest.seconds >= sum(step["seconds"] for step in report["steps"]) > 0


def test_an_empty_strategy_gives_a_zero_shot_bundle(run: Compile, tmp_path: Path) -> None:
    run(overrides=["optimize.strategy=[]"])
    bundle = read_bundle(tmp_path / "artifacts" / "bundle")
    assert bundle.candidate.id == "zero-shot"
    assert bundle.manifest.scores["shipped"]["test"]["mean"] == bundle.manifest.scores["zero_shot"]["test"]["mean"]


def test_a_bundle_scores_again_as_it_did(run: Compile, tmp_path: Path) -> None:
    run()
    folder = tmp_path / "artifacts" / "bundle"
    scores = read_bundle(folder).manifest.scores["shipped"]
    for split in ("dev", "test"):
        backend = RuleBackend(rule=sometimes)
        report = evaluate_bundle(folder, split=split, cache=tmp_path / "elsewhere", opener=lambda _, b=backend: b)
        assert report.mean == scores[split]["mean"]
        assert backend.closed


def test_a_bundle_is_scored_on_the_split_that_it_was_compiled_with(spec: Path, tmp_path: Path) -> None:
    """The split falls by content: by labels that the metric does not read too, and as it was stratified."""
    rows = [{"text": f"{'gb'[n % 2]} {n}", "mood": ("good", "bad")[n % 2], "sure": n % 3 == 0} for n in range(40)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "{path: all.jsonl, split: {train: 20, dev: 10, test: 10}, stratify: mood}"
    text = SPEC.replace("{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}", data)
    spec.write_text(
        text.replace("outputs: {mood: {enum: [good, bad]}}", "outputs: {mood: {enum: [good, bad]}, sure: bool}")
    )

    def opened(*_: Any) -> RuleBackend:
        return RuleBackend(rule=lambda asked: f"{sometimes(asked)}\nSure: true")

    settings = CompileSettings(out=tmp_path / "bundle", cache=tmp_path / "cache", opener=opened)
    folder = compile_with(spec, settings)
    kept = read_bundle(folder).manifest.identity["scores"]["shipped"]
    for split in ("dev", "test"):
        report = evaluate_bundle(folder, split=split, cache=tmp_path / "elsewhere", opener=opened)
        assert [list(pair) for pair in report.scores] == kept[split]


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_bundle_is_scored_on_data_given_as_a_spec_names_it(
    run: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    (tmp_path / "set").mkdir()
    rows = '{"text": "g fresh", "mood": "good"}\n{"text": "b fresh", "mood": "bad"}\n'
    (tmp_path / "set" / "test.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    datasets = pytest.importorskip("datasets", reason="needs the extra `data`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "sets")

    def scored(data: str) -> list[float]:
        report = evaluate_bundle(
            tmp_path / "artifacts" / "bundle",
            data=data,
            cache=tmp_path / "elsewhere",
            opener=lambda _: RuleBackend(rule=lambda asked: f"Mood: {truth(asked.value('Text'))}"),
        )
        return [score for _, score in report.scores]

    assert scored("set/test.jsonl") == scored(str(tmp_path / "set" / "test.jsonl")) == [1.0, 1.0]
    with pytest.raises(DataError, match="BTC321"):
        scored("sklearn:moods")
    assert scored("hf://./set:test") == [1.0, 1.0]


def test_a_split_without_examples_is_an_error(run: Compile, spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace(", test: test.jsonl", ""))
    run()
    with pytest.raises(BtcError, match="BTC452"):
        evaluate_bundle(tmp_path / "artifacts" / "bundle", split="test", cache=tmp_path / "cache")
