"""A judge with a prompt format of its own: the bundle carries it, and is scored with what it carries."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import PromptText, Request
from bt_compiler.engine.templates import template_folder
from bt_compiler.errors import SpecError

SPEC = """\
version: 1
name: judged
models: {small: {id: writer, engine: scripted}, large: {id: judge, engine: scripted}}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl, labels: {gold: str}}
modules:
  answer: {model: small, signature: "question -> answer"}
  grade:
    model: large
    format: ./strict.jinja
    signature:
      instructions: Compare.
      inputs: {question: str, answer: str, gold: str}
      outputs: {good: bool}
metric: {kind: judge, call: grade, in: {question: $question, answer: $answer, gold: $labels.gold}, score: good}
optimize: {strategy: [prompts], prompts: {candidates: 1}}
"""
OWN = "You are a strict judge."


class Kept(ScriptedBackend):
    """Keeps the prompts that it saw."""

    def __init__(self, name: str, answer: Callable[[Request], str]) -> None:
        super().__init__(function=answer, identity=name)
        self.prompts: list[PromptText] = []

    def submit(self, requests: Sequence[Request]) -> None:
        self.prompts += [request.prompt for request in requests]
        super().submit(requests)


def answers(request: Request) -> str:
    question = field(request, "Question")
    return f"Answer: {'a' if int(question.split()[-1]) % 3 else 'b'}"


def grades(request: Request) -> str:
    return f"Good: {'true' if field(request, 'Answer') == field(request, 'Gold') else 'false'}"


def field(request: Request, label: str) -> str:
    lines = request.prompt.messages[-1].content.splitlines()
    return next(line for line in lines if line.startswith(f"{label}: ")).partition(": ")[2]


def backends() -> dict[str, Kept]:
    return {"small": Kept("writer", answers), "large": Kept("judge", grades)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the spec, its data and the judge's format."""
    folder = tmp_path / "home"
    folder.mkdir()
    for split, count in (("train", 9), ("dev", 6), ("test", 6)):
        rows = [{"question": f"{split} {n}", "gold": "a"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = (template_folder() / "prompts" / "fields.jinja").read_text()
    marked = source.replace("{{ instructions }}", f"{OWN} {{{{ instructions }}}}")
    assert marked != source
    (folder / "strict.jinja").write_text(marked)
    (folder / "judged.yaml").write_text(SPEC)
    return folder


def compiled(home: Path, out: Path, **more: Any) -> tuple[Path, dict[str, Kept]]:
    found = backends()
    settings = CompileSettings(
        out=out,
        cache=out.parent / f"cache-{out.name}",
        progress=Silent(),
        opener=lambda section, _choices: found[section.name],
        **more,
    )
    return compile_with(home / "judged.yaml", settings), found


def scored(bundle: Path, data: Path) -> tuple[Any, dict[str, Kept]]:
    found = backends()
    cache = data.parent / "cache-eval"
    return evaluate_bundle(bundle, data=str(data), cache=cache, opener=lambda section: found[section.name]), found


def test_a_bundle_is_scored_where_the_spec_and_its_files_are_gone(home: Path, tmp_path: Path) -> None:
    bundle, then = compiled(home, tmp_path / "artifacts" / "judged")
    test = shutil.copy(home / "test.jsonl", tmp_path / "rows.jsonl")
    shutil.move(home, tmp_path / "elsewhere")
    report, now = scored(bundle, Path(test))
    assert report.mean == read_bundle(bundle).manifest.scores["shipped"]["test"]["mean"] == pytest.approx(4 / 6)
    assert len(now["large"].prompts) == 6
    assert all(OWN in prompt.messages[0].content for prompt in now["large"].prompts)
    assert set(now["large"].prompts) <= set(then["large"].prompts)
    assert not any(OWN in prompt.messages[0].content for prompt in now["small"].prompts)
    assert (report.calls, report.cached_calls) == (12, 0)  # the judge's among them
    again, _ = scored(bundle, Path(test))
    assert (again.calls, again.cached_calls, again.prompt_tokens) == (12, 12, report.prompt_tokens)


def test_a_file_that_people_rated_shows_how_far_the_judge_agrees(home: Path, tmp_path: Path) -> None:
    bundle, _ = compiled(home, tmp_path / "judged")
    rows = [{"question": f"q {n}", "gold": "a", "answer": "ab"[n % 2], "good": n < 3} for n in range(4)]
    file = tmp_path / "rated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = scored(bundle, file)
    assert report.agreement is not None
    assert (report.agreement.rated, report.agreement.equal) == (4, 3 / 4)


def test_the_carried_format_is_used_beside_one_that_has_changed(home: Path, tmp_path: Path) -> None:
    bundle, then = compiled(home, tmp_path / "judged")
    (home / "strict.jinja").write_text((home / "strict.jinja").read_text().replace("strict", "lenient"))
    _, now = scored(bundle, home / "test.jsonl")
    assert now["large"].prompts and set(now["large"].prompts) <= set(then["large"].prompts)


def test_a_changed_byte_of_it_is_found(home: Path, tmp_path: Path) -> None:
    bundle, _ = compiled(home, tmp_path / "judged")
    carried = bundle / "formats" / "strict.jinja"
    command = [sys.executable, "-m", "bt_compiler", "verify", str(bundle)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    carried.write_text(carried.read_text().replace("strict", "kinder"))
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "BTC553" in found.stderr and "formats/strict.jinja" in found.stderr


def test_the_digest_covers_it(home: Path, tmp_path: Path) -> None:
    """The verdicts stay the same, and so do all scores."""
    first, again = (read_bundle(compiled(home, tmp_path / name)[0]).manifest for name in ("first", "again"))
    assert first.digest == again.digest
    (home / "strict.jinja").write_text((home / "strict.jinja").read_text().replace("strict", "lenient"))
    other = read_bundle(compiled(home, tmp_path / "other")[0]).manifest
    assert other.digest != first.digest
    assert {key for key in other.identity if other.identity[key] != first.identity[key]} == set()


def test_a_judge_that_the_bundle_does_not_know_has_its_format_where_it_says(home: Path, tmp_path: Path) -> None:
    """As one named by an override has, or that of a bundle from before judges were carried."""
    bundle, _ = compiled(home, tmp_path / "judged")
    (home / "strict.jinja").unlink()
    found = backends()
    swapped = ["metric.call=other", "modules.other={model: large, format: gone.jinja, signature: GRADE}"]
    swapped[1] = swapped[1].replace("GRADE", "{inputs: {question: str, answer: str, gold: str}, outputs: {good: bool}}")
    with pytest.raises(SpecError, match=r"gone\.jinja"):
        evaluate_bundle(
            bundle,
            data=str(home / "test.jsonl"),
            overrides=swapped,
            cache=tmp_path / "c",
            opener=lambda section: found[section.name],
        )
