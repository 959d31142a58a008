"""Two models whose rows depend on their batch: what is in their parts does not depend on which of them is slow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine" / "backends"))

from tiny_models import open_model, save_model

from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.compiler.opening import Choices, OpenBackend, measured
from bt_compiler.engine.backends.schedule import PackedRows
from bt_compiler.engine.request import Backend
from bt_compiler.spec.sections import ModelSection

SPEC = """\
version: 1
name: hints
models: {first: {id: ./first, generation: {temperature: 1}}, second: {id: ./second}}
data: {train: rows.jsonl, dev: dev.jsonl, test: test.jsonl}
modules: # answers of several lengths, so that rows of a part end one after another
  hint: {model: first, signature: {inputs: {text: str}, outputs: {hint: {enum: [no, 1234567, 0123456789012345]}}}}
  class: {model: second, signature: {inputs: {text: str, hint: str}, outputs: {kind: {enum: [bug, other]}}}}
program:
  inputs: {text: str}
  steps:
    x: {call: hint, in: [text]}
    y: {call: class, in: {text: $text, hint: $x.hint}}
  out: {kind: $y.kind}
metric: accuracy
optimize: {strategy: []}
"""
ROWS = {"first": 3, "second": 5}
"""Of a part of each model."""
Parts = list[tuple[tuple[int, ...], ...]]


@pytest.fixture
def opener(tmp_path: Path) -> OpenBackend:
    for name in ROWS:
        save_model(tmp_path / name)

    def opened(section: ModelSection, _: Choices = measured) -> Backend:
        rows = ROWS[section.name]
        return open_model(tmp_path / section.name, tmp_path / "cache", batch=rows, tier="shared-prefix attention")

    return opened


@pytest.fixture
def parts_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], str], Parts]:
    """Prompts of each part of the second model while a job runs, each pass of `slow` being slow."""
    step = PackedRows.step

    def run(job: Callable[[], object], slow: str) -> Parts:
        parts: Parts = []

        def watched(tier: PackedRows) -> object:
            if tier.slots == ROWS[slow]:
                time.sleep(0.008)
            begins = not tier._live
            waiting = [tuple(row.prompt.ids) for row in tier._waiting]
            ended = step(tier)
            if begins and tier.slots == ROWS["second"]:
                parts.append(tuple(waiting[: len(waiting) - len(tier._waiting)]))
            return ended

        monkeypatch.setattr(PackedRows, "step", watched)
        job()
        return parts

    return run


def test_parts_do_not_depend_on_which_model_is_slow(
    opener: OpenBackend, parts_of: Callable[[Callable[[], object], str], Parts], tmp_path: Path
) -> None:
    for name, numbers in (("rows", range(3)), ("dev", range(10, 12)), ("test", range(20, 34))):
        rows = [{"text": "petal " * (n % 5) + str(n), "kind": ("bug", "other")[n % 2]} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "hints.yaml").write_text(SPEC)

    def compiled(name: str) -> None:
        settings = CompileSettings(out=tmp_path / f"bundle-{name}", cache=tmp_path / f"cache-{name}", opener=opener)
        compile_with(tmp_path / "hints.yaml", settings)

    def scored(cache: str) -> None:
        evaluate_bundle(tmp_path / "bundle-first", cache=tmp_path / cache, opener=opener)

    whole = parts_of(lambda: compiled("first"), "first")
    assert sum(map(len, whole)) >= 14
    assert any(1 < len(part) < ROWS["second"] for part in whole)
    assert parts_of(lambda: compiled("second"), "second") == whole
    assert parts_of(lambda: scored("one"), "first") == parts_of(lambda: scored("two"), "second")
