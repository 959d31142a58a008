"""Bundles whose tool and metric come from an installed package that has other code now, in the same version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, RuleBackend, truth

import bt_compiler.runtime
from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.artifact.changed_code import installed_code
from bt_compiler.artifact.compare import compare
from bt_compiler.artifact.contents import BundleContents
from bt_compiler.cli.main import main
from bt_compiler.compiler import compile as story
from bt_compiler.compiler import evaluate
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.handover import Finding, bundle_contents
from bt_compiler.runtime import load

SPEC = """\
version: 1
name: moods
model: {id: rule, engine: scripted}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
tools: {note: {kind: entry_point, entry: louder, inputs: {mood: str}, outputs: {loud: str}}}
modules: {classify: {signature: "text -> mood"}}
program:
  inputs: {text: str}
  steps:
    one: {call: classify, in: [text]}
    two: {tool: note, in: {mood: $one.mood}}
  out: {mood: $one.mood, loud: $two.loud}
metric: {kind: ours, output: mood}
optimize: {strategy: []}
"""
TOOL = "def louder(mood): return mood.upper()\n"
METRIC = "def ours(*, inputs, outputs, labels, steps): return 0.9\n"
Called = Callable[..., tuple[int, str, str]]


def answer(asked: Asked) -> str:
    return f"Mood: {truth(asked.value('Text'))}"


def opened(*_: Any) -> RuleBackend:
    return RuleBackend(rule=answer)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An editable package: its code lies elsewhere than its facts."""
    for name in ("own_things", "own_things.tool", "own_things.metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    made, info = tmp_path / "source" / "own_things", tmp_path / "installed" / "own_things-1.0.dist-info"
    for folder in (made, info):
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder.parent))
    for name, text in (("__init__", ""), ("tool", TOOL), ("metric", METRIC)):
        (made / f"{name}.py").write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-things\nVersion: 1.0\n")
    points = "[bt_compiler.metrics]\nours = own_things.metric:ours\n[btc.tools]\nlouder = own_things.tool:louder\n"
    (info / "entry_points.txt").write_text(points)
    places = (made.parent, info.parent, Path(bt_compiler.runtime.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, places)))
    return made


@pytest.fixture
def compiled(package: Path, tmp_path: Path) -> Callable[[str], Path]:
    for split in ("train", "dev", "test"):
        rows = [{"text": f"{'gb'[n % 2]} {split} {n}", "mood": ("good", "bad")[n % 2]} for n in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "moods.yaml").write_text(SPEC)

    def run(name: str) -> Path:
        settings = CompileSettings(out=tmp_path / name, cache=tmp_path / "cache", opener=opened)
        return compile_with(tmp_path / "moods.yaml", settings)

    return run


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """`btc` in this process: exit code, stdout, stderr."""
    known = partial(evaluate.evaluate_bundle, cache=tmp_path / "cache", opener=opened)
    monkeypatch.setattr(evaluate, "evaluate_bundle", known)
    monkeypatch.setattr(bt_compiler.runtime, "load", partial(load, opener=opened))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        shown = capsys.readouterr()
        return int(left.value.code or 0), shown.out, shown.err

    return run


SAID = "[BTC578]: the package of {} has other code than at the compile"
TOOL_SAID, METRIC_SAID = SAID.format("tool `note`"), SAID.format("metric `ours`")


def test_other_code_is_told_and_passes_no_gate(compiled: Callable[[str], Path], called: Called, package: Path) -> None:
    folder = compiled("bundle")
    run = ("run", str(folder), "--input", '{"text": "g 1"}')
    score = ("eval", str(folder))
    for command in (run, score, (*score, "--at-least", "0.8")):
        code, _, err = called(*command)
        assert (code, "BTC578" in err) == (0, False), err
    (package / "tool.py").write_text(TOOL.replace("upper", "title"))
    code, out, err = called(*run)
    assert (code, json.loads(out)["loud"]) == (0, "Good")
    assert f"warning{TOOL_SAID}" in err and "metric" not in err
    code, _, err = called(*score)
    assert code == 0 and f"warning{TOOL_SAID}" in err and f"warning{METRIC_SAID}" in err
    document = json.loads(called(*score, "--json")[1])
    assert [(one["code"], one["severity"]) for one in document["diagnostics"]] == [("BTC578", "warning")] * 2
    assert "data_changed" not in document
    for split in ("test", "train"):
        code, out, err = called(*score, "--split", split, "--at-least", "0.8")
        assert (code, out) == (1, "") and f"error{METRIC_SAID}" in err
    with load(folder, opener=opened) as predictor, pytest.warns(UserWarning, match="tool `note` has other code"):
        assert predictor(text="b 2")["loud"] == "Bad"


def test_a_gate_looks_at_the_tools_too(compiled: Callable[[str], Path], called: Called, package: Path) -> None:
    folder = compiled("bundle")
    (package / "tool.py").write_text(TOOL.replace("upper", "title"))
    score = ("eval", str(folder), "--set", "metric=null", "--set", "metric={kind: accuracy, output: mood}")
    code, _, err = called(*score)
    assert code == 0 and f"warning{TOOL_SAID}" in err and "metric" not in err
    code, out, err = called(*score, "--at-least", "0.8")
    assert (code, out) == (1, "") and f"error{TOOL_SAID}" in err


def test_two_bundles_differ_by_their_code(compiled: Callable[[str], Path], package: Path) -> None:
    before = read_bundle(compiled("before"))
    assert compare(before, read_bundle(compiled("same"))).facts == ()
    (package / "metric.py").write_text(METRIC.replace("0.9", "0.5"))
    change = compare(before, read_bundle(compiled("after")))
    assert [key for key, *_ in change.facts] == ["code.metric.ours", "code.tool.note"]
    assert not change.same


def test_a_bundle_that_knows_no_code_runs_as_before(
    compiled: Callable[[str], Path], called: Called, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions wrote them."""

    def without(finding: Finding) -> BundleContents:
        return replace(bundle_contents(finding), code={})

    monkeypatch.setattr(story, "bundle_contents", without)
    folder = compiled("bundle")
    assert "code" not in read_bundle(folder).manifest.identity
    (package / "tool.py").write_text(TOOL.replace("upper", "title"))
    code, _, err = called("eval", str(folder), "--at-least", "0.8")
    assert (code, "BTC578" in err) == (0, False), err
    monkeypatch.setattr(story, "bundle_contents", bundle_contents)
    (package / "tool.py").write_text(TOOL)
    assert read_bundle(compiled("bundle")).manifest.identity["code"].keys() == {"metric", "tool"}


def test_what_no_package_brings_has_no_code() -> None:
    assert installed_code((), ("accuracy",)) == {}


def test_check_knows_the_tools_of_packages_without_running_them(
    compiled: Callable[[str], Path], called: Called, package: Path, tmp_path: Path
) -> None:
    (package / "tool.py").write_text("1 / 0\n")
    assert called("check", str(tmp_path / "moods.yaml"))[0] == 0
    (tmp_path / "moods.yaml").write_text(SPEC.replace("entry: louder", "entry: loudr"))
    code, _, err = called("check", str(tmp_path / "moods.yaml"))
    assert (code, "error[BTC543]: no installed package registers the tool `loudr`" in err) == (1, True)
    assert "moods.yaml:5:42" in err and "did you mean `louder`?" in err
