"""Bundles of a model on a server, asked of another one there."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, RuleBackend, truth
from said import Said

import bt_compiler.runtime
from bt_compiler.cli.main import main
from bt_compiler.compiler import evaluate
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.runtime import load

SPEC = """\
version: 1
name: moods
model: {id: small, engine: openai, endpoints: [http://localhost:1/v1]}
data: {path: rows.jsonl, split: {train: 2, dev: 2, test: 4}}
modules: {classify: {signature: "text -> mood"}}
metric: {kind: exact_match, output: mood}
optimize: {strategy: []}
"""
SAID = "warning[BTC577]: model `default` is `large`, the bundle was compiled on `small`"


def answer(asked: Asked) -> str:
    return f"Mood: {truth(asked.value('Text'))}"


def opened(*_: Any) -> RuleBackend:
    return RuleBackend(rule=answer)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{"text": f"{'gb'[n % 2]} {n}", "mood": ("good", "bad")[n % 2]} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "moods.yaml").write_text(SPEC)
    known = partial(evaluate.evaluate_bundle, cache=tmp_path / "cache", opener=opened)
    monkeypatch.setattr(evaluate, "evaluate_bundle", known)
    monkeypatch.setattr(bt_compiler.runtime, "load", partial(load, opener=opened))
    settings = CompileSettings(out=tmp_path / "bundle", cache=tmp_path / "cache", opener=opened)
    return compile_with(tmp_path / "moods.yaml", settings)


def test_another_model_on_a_server_is_told_and_passes_a_gate_by_its_score(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, score = ("run", str(folder), "--input", '{"text": "g 1"}'), ("eval", str(folder), "--at-least", "0.9")
    for command in (run, score):
        for id, told in (("small", False), ("large", True)):
            with pytest.raises(SystemExit) as left:
                main([*command, "--set", f"model.id={id}"])
            assert (left.value.code, SAID in capsys.readouterr().err) == (0, told)
    with pytest.raises(SystemExit):
        main([*score, "--set", "model.id=large", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], [one["code"] for one in document["diagnostics"]]) == (True, ["BTC577"])


def test_another_model_on_a_server_is_told_in_python(folder: Path) -> None:
    other = ["model.id=large"]
    with load(folder, overrides=other, opener=opened) as moods, pytest.warns(UserWarning, match="compiled on `small`"):
        assert moods(text="b 2").mood == "bad"
    said = Said()  # as `btc serve` does
    with load(folder, overrides=other, opener=opened, progress=said) as moods:
        moods.open()
    assert SAID in said.lines


def test_a_server_that_names_its_model_by_a_path_is_asked_for_the_same(folder: Path, tmp_path: Path) -> None:
    spec = (tmp_path / "moods.yaml").read_text().replace("id: small", "id: /models/small")
    (tmp_path / "paths.yaml").write_text(spec)
    settings = CompileSettings(out=tmp_path / "paths", cache=tmp_path / "cache", opener=opened)
    told: list[Any] = []
    with load(compile_with(tmp_path / "paths.yaml", settings), opener=opened, on_change=told.append) as moods:
        assert moods(text="g 1").mood == "good"
    assert told == []
