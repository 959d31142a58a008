from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_compiler.compiler.check import checked, label_fields, optional_label_fields
from bt_compiler.errors import CompileError, DataError, SpecError
from bt_compiler.spec import show_type

ROOT = Path(__file__).parents[2]
IRIS = ROOT / "specs" / "iris.yaml"
HOTPOTQA = ROOT / "specs" / "hotpotqa.yaml"

QA = """
version: 1
data: {path: qa.jsonl, labels: {answers: [str]}}
modules:
  answer: {kind: chain_of_thought, signature: "question -> answer, sure: bool"}
program:
  inputs: {question: str}
  steps: {one: {call: answer, in: [question]}}
  out: {answer: $one.answer, sure: $one.sure, reasoning: $one.reasoning}
metric: {kind: exact_match, output: answer, label: answers}
"""


def qa(folder: Path) -> Path:
    rows = [{"question": f"q{n}", "answers": [f"a{n}", "b"], "sure": n % 2 == 0} for n in range(12)]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qa.yaml").write_text(QA)
    return folder / "qa.yaml"


@pytest.mark.parametrize("setting", ["columns={questin: q}", "where.levle=hard", "stratify=answr"])
def test_a_wrong_setting_of_the_data_is_shown_where_it_was_set(tmp_path: Path, setting: str) -> None:
    with pytest.raises(DataError) as caught:
        checked(qa(tmp_path), [f"data.{setting}"])
    (item,) = caught.value.diagnostics
    assert item.span is not None and item.span.source.name == "--set #1"


def test_help_on_a_missing_file_says_what_its_path_is_relative_to(tmp_path: Path) -> None:
    path = qa(tmp_path)
    with pytest.raises(DataError, match="paths are relative to the working folder"):
        checked(path, ["data.path=nofile.csv"])
    (tmp_path / "qa.jsonl").rename(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"holds `other\.jsonl`; paths are relative to the spec's folder"):
        checked(path)


def test_what_cannot_be_looked_into_is_a_finding(tmp_path: Path) -> None:
    """A name that is too long is refused by the system, as a folder is that may not be entered."""
    closed = tmp_path / ("n" * 300)
    corpus = f"retrievers={{wiki: {{kind: bm25, corpus: {closed}/corpus.jsonl}}}}"
    with pytest.raises(DataError, match=r"BTC373.*cannot be read: file name too long"):
        checked(HOTPOTQA, [corpus, f"data={qa(tmp_path).with_name('qa.jsonl')}", "data.columns.answer=answers"])
    with pytest.raises(SpecError, match=r"BTC316.*cannot be read: file name too long"):
        checked(qa(tmp_path), [f"model.id={closed}/model"])


def test_iris_has_the_splits_of_the_paper() -> None:
    pytest.importorskip("sklearn")
    found = checked(IRIS)
    assert [len(part) for part in found.splits] == [50, 50, 50]
    assert set(found.splits.train[0].inputs) == {"sepal_length", "sepal_width", "petal_length", "petal_width"}
    assert [item.code for item in found.warnings] == ["BTC333"]


def test_the_variant_has_the_same_examples() -> None:
    pytest.importorskip("sklearn")
    assert checked(ROOT / "specs" / "iris_cot.yaml").splits == checked(IRIS).splits


def test_labels_are_what_the_metric_needs_and_what_the_data_has(tmp_path: Path) -> None:
    found = checked(qa(tmp_path))
    required = label_fields(found.program, found.sections)
    assert [(field.name, show_type(field.type)) for field in required] == [("answers", "[str]")]
    optional = optional_label_fields(found.program, found.sections)
    assert [field.name for field in optional] == ["answer", "sure", "reasoning"]
    assert set(found.splits.train[0].labels) == {"answers", "sure"}


def test_an_input_is_no_label_unless_it_is_declared(tmp_path: Path) -> None:
    path = qa(tmp_path)
    head, _, _ = QA.partition("  out:")
    path.write_text(head + "  out: {question: $one.answer}\nmetric: {kind: exact_match}\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        checked(path)
    assert [item.code for item in caught.value.diagnostics] == ["BTC256"]
    assert checked(path, ["metric.label=answers"])
    found = checked(path, ["data.labels={question: str}"])
    assert found.splits.train[0].labels["question"] == found.splits.train[0].inputs["question"]


def test_hotpotqa_runs_on_other_files_by_set(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        rows = [{"question": f"{split} {n}?", "answer": "x", "id": n} for n in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "corpus.jsonl").write_text('{"title": "T", "text": "words"}\n')
    overrides = [f"data.{split}={tmp_path / split}.jsonl" for split in ("train", "dev", "test")]
    overrides.append(f"retrievers.wiki.corpus.path={tmp_path}/corpus.jsonl")
    overrides += ["optimize.prompts.train=1", "optimize.prompts.val=3"]
    found = checked(HOTPOTQA, overrides)
    assert [len(part) for part in found.splits] == [4, 4, 4]
    assert found.warnings == ()


def test_gsm8k_draws_its_splits_from_one_file(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": f"so {n}\n#### {n},000"} for n in range(1, 31)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [f"data.{split}.path={tmp_path}/all.jsonl" for split in ("train", "dev", "test")]
    sizes = {"data.train.sample": 12, "data.dev.sample": 8, "data.test.sample": 10}
    overrides += [f"{name}={size}" for name, size in sizes.items()]
    found = checked(ROOT / "specs" / "gsm8k.yaml", [*overrides, "optimize.prompts.train=4", "optimize.prompts.val=8"])
    assert [len(part) for part in found.splits] == [12, 8, 10]
    answers = [example.labels["answer"] for part in found.splits for example in part]
    assert sorted(answers, key=int) == [f"{n}000" for n in range(1, 31)]


def test_too_little_train_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as caught:
        checked(qa(tmp_path), ["optimize.prompts.train=15"])
    assert caught.value.diagnostics[0].code == "BTC450"
    checked(qa(tmp_path), ["optimize.prompts.train=15", "optimize.strategy=[]"])


def test_check_imports_no_heavy_library() -> None:
    heavy = [
        "datasets",
        "pyarrow",
        "zstandard",
        "torch",
        "transformers",
        "peft",
        "numpy",
        "sklearn",
        "jinja2",
        "bm25s",
        "matplotlib",
        "fastapi",
        "httpx",
    ]
    code = (
        "import sys; from pathlib import Path; from bt_compiler.compiler.check import checked; "
        f"checked(Path({str(IRIS)!r})); print([name for name in {heavy!r} if name in sys.modules])"
    )
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["agent", "judged_summary", "rag_citations", "routing", "tools", "two_models"])
def test_nothing_is_wrong_with_the_example_specs(name: str) -> None:
    assert [item for item in checked(ROOT / "specs" / f"{name}.yaml").warnings if item.severity != "note"] == []


def test_the_format_of_a_judge_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "judged.yaml"
    path.write_text(f"extends: {ROOT / 'specs' / 'judged_summary.yaml'}\nmodules: {{grade: {{format: other.jinja}}}}\n")
    with pytest.raises(SpecError) as caught:
        checked(path)
    (found,) = caught.value.diagnostics
    assert found.code == "BTC520" and found.span is not None and found.span.line == 2


def test_a_format_of_ones_own_is_rendered_with_a_row(tmp_path: Path) -> None:
    path, own = qa(tmp_path), tmp_path / "own.jinja"
    source = "{% macro system(a, b, c) %}{{ a }}{% endmacro %}{% macro user(v, o) %}{{ v[PLACE].text }}{% endmacro %}"
    own.write_text(source.replace("PLACE", "3"))
    with pytest.raises(SpecError) as caught:
        checked(path, [f"format={own}"])
    (found,) = caught.value.diagnostics
    assert found.code == "BTC521" and "in `user`" in found.message and found.span is not None
    assert found.notes[0].startswith("rendered for module `answer` with ") and "qa.jsonl:" in found.notes[0]
    own.write_text(source.replace("PLACE", "0"))
    checked(path, [f"format={own}"])
    # what an earlier step gives is not known here
    steps = "{one: {call: answer, in: [question]}, two: {call: late, in: {answer: $one.answer}}}"
    late = "modules:\n  late: {format: late.jinja, signature: {inputs: {answer: str}, outputs: {said: str}}}"
    text = path.read_text().replace("modules:", late).replace("{one: {call: answer, in: [question]}}", steps)
    path.write_text(text.replace("{answer: $one.answer,", "{said: $two.said, answer: $one.answer,"))
    (tmp_path / "late.jinja").write_text(source.replace("v[PLACE].text", "v[0].text.split(': ')[7]"))
    checked(path)


@pytest.mark.parametrize(("format", "codes"), [("fields", ["BTC335"]), ("completion", ["BTC335"]), ("json", [])])
def test_an_empty_answer_that_lines_cannot_hold_is_told_of(tmp_path: Path, format: str, codes: list[str]) -> None:
    path = qa(tmp_path)
    answers = [[" ", ""], ["", "b"], [""], ["a"]]
    rows = [{"question": f"q{n}", "answers": answers[n % 4], "sure": n % 2 == 0} for n in range(12)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [item for item in checked(path, [f"format={format}"]).warnings if item.severity == "warning"]
    assert [item.code for item in found] == codes
    if found:
        assert "label `answers` is empty in 6 of 12 rows" in found[0].message
        assert f"in format `{format}`" in found[0].message
