"""`btc eval` on data that is not what it was at the compile: told, and no gate passes on what may have been learnt."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from answering import Asked, RuleBackend, truth

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.cli.main import main
from bt_compiler.compiler import evaluate
from bt_compiler.compiler.changed_data import ChangedSplit
from bt_compiler.compiler.compile import CompileSettings, compile_with

SPEC = """\
version: 1
name: moods
model: {id: rule, engine: scripted}
data: DATA
modules: {classify: {signature: "text -> mood"}}
metric: {kind: exact_match, output: mood}
optimize: {strategy: STRATEGY, prompts: {candidates: 1}, accept: {metric: {kind: contains, output: mood, label: part}}}
"""
FILES = "{train: train.jsonl, dev: dev.jsonl, test: test.jsonl}"

Compiled = Callable[..., Path]
Scored = Callable[..., tuple[int, dict[str, Any], str]]


def write(path: Path, numbers: range) -> None:
    rows = [{"text": f"{'gb'[n % 2]} {n}", "mood": ("good", "bad")[n % 2], "part": "od"} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(asked: Asked) -> str:
    return f"Mood: {truth(asked.value('Text'))}"


def opened(*_: Any) -> RuleBackend:
    return RuleBackend(rule=answer)


@pytest.fixture
def compiled(tmp_path: Path) -> Compiled:
    def run(data: str, strategy: str = "[prompts]") -> Path:
        (tmp_path / "moods.yaml").write_text(SPEC.replace("DATA", data).replace("STRATEGY", strategy))
        settings = CompileSettings(out=tmp_path / "bundle", cache=tmp_path / "cache", opener=opened)
        return compile_with(tmp_path / "moods.yaml", settings)

    for name, numbers in (("train", range(12)), ("dev", range(20, 26)), ("test", range(30, 36)), ("all", range(40))):
        write(tmp_path / f"{name}.jsonl", numbers)
    return run


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Scored:
    """`btc eval --json` in this process: exit code, document, and stderr without `--json`."""
    known = partial(evaluate.evaluate_bundle, cache=tmp_path / "cache", opener=opened)
    monkeypatch.setattr(evaluate, "evaluate_bundle", known)

    def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
        codes, said = [], []
        for more in ((), ("--json",)):
            with pytest.raises(SystemExit) as left:
                main(["eval", str(tmp_path / "bundle"), *arguments, *more])
            codes.append(int(left.value.code or 0))
            said.append(capsys.readouterr())
        assert codes[0] == codes[1]
        return codes[0], json.loads(said[1].out), said[0].err

    return run


@pytest.mark.parametrize("split", ["{train: 20, dev: 10, test: 10}", "{train: 0.6, dev: 0.2, test: 0.2}"])
def test_rows_added_to_a_file_that_is_split_pass_no_gate(
    split: str, compiled: Compiled, scored: Scored, tmp_path: Path
) -> None:
    folder = compiled(f"{{path: all.jsonl, split: {split}}}")
    code, document, err = scored("--at-least", "0.9")
    assert (code, document["mean"], "data_changed" in document, "BTC455" in err) == (0, 1.0, False, False)
    write(tmp_path / "all.jsonl", range(80))
    told: list[ChangedSplit] = []
    report = evaluate.evaluate_bundle(folder, on_change=told.append)
    before = {id for id, _ in read_bundle(folder).manifest.identity["scores"]["shipped"]["test"]}
    new = {id for id, _ in report.scores} - before
    assert [(one.examples, one.before, one.new, one.seen) for one in told] == [
        (len(report.scores), len(before), len(new), len(new))
    ]
    code, document, err = scored()
    assert (code, document["ok"], document["data_changed"]) == (0, True, True)
    assert [(one["code"], one["severity"]) for one in document["diagnostics"]] == [("BTC455", "warning")]
    assert f"warning[BTC455]: `test` is not what it was at the compile: {len(report.scores)} examples" in err
    assert f"the compile may have learnt from {len(new)} of these" in err and "`--data FILE`" in err
    code, document, err = scored("--at-least", "0.9")
    assert (code, document["ok"], "error[BTC455]" in err) == (1, False, True)
    assert [one["code"] for one in document["diagnostics"]] == ["BTC455"]
    write(tmp_path / "held.jsonl", range(100, 104))
    assert scored("--at-least", "0.9", "--data", str(tmp_path / "held.jsonl"))[0] == 0


def test_a_compile_without_steps_has_learnt_from_nothing(compiled: Compiled, scored: Scored, tmp_path: Path) -> None:
    compiled("{path: all.jsonl, split: {train: 20, dev: 10, test: 10}}", strategy="[]")
    write(tmp_path / "all.jsonl", range(80))
    code, document, err = scored("--at-least", "0.9")
    assert (code, document["data_changed"], "warning[BTC455]" in err, "learnt" in err) == (0, True, True, False), err


def test_test_rows_beside_an_unchanged_train_pass_a_gate_and_are_told_of(
    compiled: Compiled, scored: Scored, tmp_path: Path
) -> None:
    compiled(FILES)
    assert "BTC455" not in scored("--split", "train", "--at-least", "0.9")[2]
    for numbers, said in ((range(30, 40), "10 examples, 6 before; 4 are new\n"), (range(30, 34), "4 examples, ")):
        write(tmp_path / "test.jsonl", numbers)
        code, document, err = scored("--at-least", "0.9")
        assert (
            code,
            document["data_changed"],
            f"warning[BTC455]: `test` is not what it was at the compile: {said}" in err,
        ) == (
            0,
            True,
            True,
        )
    turned = (tmp_path / "dev.jsonl").read_text().splitlines(keepends=True)[::-1]
    (tmp_path / "dev.jsonl").write_text("".join(turned))
    assert "data_changed" not in scored("--split", "dev")[1]


def test_rows_that_chose_or_that_come_with_another_train_pass_no_gate(
    compiled: Compiled, scored: Scored, tmp_path: Path
) -> None:
    compiled(FILES)
    write(tmp_path / "dev.jsonl", range(50, 56))
    write(tmp_path / "test.jsonl", range(24, 36))  # two of dev's, which chose
    code, _, err = scored("--at-least", "0.9")
    assert (code, "6 are new, and the compile may have learnt from 2 of these" in err) == (1, True), err
    write(tmp_path / "test.jsonl", range(30, 38))
    assert scored("--at-least", "0.9")[0] == 0
    write(tmp_path / "train.jsonl", range(11))
    code, _, err = scored("--at-least", "0.9")
    assert (code, "2 are new, and the compile may have learnt from 2 of these" in err) == (1, True), err


def test_every_example_is_shown_with_its_place_and_answer(compiled: Compiled, scored: Scored, tmp_path: Path) -> None:
    compiled(FILES)
    _, document, _ = scored()
    first = document["scores"][0]
    assert Path(first.pop("place")).name == "test.jsonl:1"
    assert first == {
        "example": document["scores"][0]["example"],
        "score": 1.0,
        "inputs": {"text": "g 30"},
        "outputs": {"mood": "good"},
        "labels": {"mood": "good", "part": "od"},
    }


def test_a_difference_names_the_lines_of_what_changed(
    compiled: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = compiled(FILES).rename(tmp_path / "right")

    def always_good(asked: Asked) -> str:
        return "Mood: good"

    settings = CompileSettings(
        out=tmp_path / "wrong", cache=tmp_path / "empty", opener=lambda *_: RuleBackend(rule=always_good)
    )
    wrong = compile_with(tmp_path / "moods.yaml", settings)

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["diff", str(right), str(wrong), *arguments])
        assert not left.value.code
        return capsys.readouterr().out

    lines = [line for line in said().splitlines() if line.endswith(("test.jsonl:2", "test.jsonl:4", "test.jsonl:6"))]
    assert len(lines) == 3 and all(": 1 -> 0  " in line for line in lines)
    assert sum("dev.jsonl:" in place for place in json.loads(said("--json"))["places"].values()) == 3
    (tmp_path / "test.jsonl").unlink()
    assert "jsonl:" not in said()


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("{path: all.jsonl, split: {train: 20, dev: 10, test: 10}}", ["data.path=all.jsonl"]),
        ("all.jsonl", ["data.path=all.jsonl"]),
        (FILES, [f"data.{name}.path={name}.jsonl" for name in ("train", "dev", "test")]),
    ],
)
def test_data_that_lies_elsewhere_now_can_be_named(
    data: str, given: list[str], compiled: Compiled, scored: Scored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(data)
    (tmp_path / "elsewhere").mkdir()
    for file in tmp_path.glob("*.jsonl"):
        file.rename(tmp_path / "elsewhere" / file.name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, document, _ = scored()
    (first, *_) = document["diagnostics"]
    words = " ".join(f"--set {one.partition('=')[0]}=FILE" for one in given)
    assert (code, first["code"], f"`{words}`" in first["help"]) == (1, "BTC301", True), first
    code, document, err = scored("--at-least", "0.9", *(word for one in given for word in ("--set", one)))
    assert (code, document["mean"]) == (0, 1.0), err
