"""What the weights step trains goes into the bundle and is what the bundle runs on: all parameters, DoRA, on pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.check import checked
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.compiler.identity import compile_identity
from bt_compiler.engine.progress import Silent
from bt_compiler.errors import CompileError
from bt_compiler.optimize.budget import parse_limit
from bt_compiler.runtime import load
from bt_compiler.spec.sections import LaunchSection

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from tiny_lm import make_tiny_lm

KINDS = ("apple", "pear", "plum")
SPEC = """\
version: 1
name: tuned
model: {{id: {model}, dtype: float32, generation: {{max_tokens: 8}}}}
data: {{path: fruit.jsonl, split: {{train: 12, test: 6}}}}
modules:
  classify:
    signature:
      instructions: Say which kind it is.
      inputs: {{size: float}}
      outputs: {{kind: {{enum: [apple, pear, plum]}}, likely: {{type: float, probability_of: kind}}}}
metric: {{kind: accuracy, output: kind}}
optimize:
  strategy: [weights, prompts]
  prompts: {{candidates: 0, max_bootstrapped_demos: 1, max_labeled_demos: 1}}
  weights: {{epochs: 2, learning_rate: 1.0e-2, warmup: 0, batch: 2, samples: 2, sources: [self, sampled, gold], {more}}}
"""


@pytest.mark.parametrize(
    ("more", "rank", "kind"),
    [
        ("method: full", 0, "FULL"),
        ("method: dora, r: 2, preference: {beta: 0.2}", 2, "LORA"),
        ("r: 2, gradient_checkpointing: true, part_tokens: 64, launch: {processes: 2}", 2, "LORA"),
    ],
)
def test_a_bundle_runs_on_what_was_trained(more: str, rank: int, kind: str, tmp_path: Path) -> None:
    rows = [{"size": 1.5 + index, "kind": KINDS[index % 3]} for index in range(18)]
    (tmp_path / "fruit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = make_tiny_lm(tmp_path / "model", ["Say which kind it is. Size: 3.5 Kind: apple", *KINDS] * 20)
    (tmp_path / "tuned.yaml").write_text(SPEC.format(model=model, more=more))
    folders = [
        compile_with(tmp_path / "tuned.yaml", CompileSettings(out=tmp_path / name, cache=tmp_path / f"{name} cache"))
        for name in ("one", "two")
    ]
    bundle = read_bundle(folders[0])
    assert bundle.manifest.digest == read_bundle(folders[1]).manifest.digest
    (adapter,) = bundle.candidate.adapters.values()
    assert adapter.rank == rank and adapter.path.is_relative_to(folders[0])
    assert json.loads((adapter.path / "adapter_config.json").read_text())["peft_type"] == kind
    assert "prompts" in bundle.candidate.origin or "weights" in bundle.candidate.origin
    for prompt in bundle.candidate.prompts.values():
        assert all(set(demo.outputs) == {"kind"} for demo in prompt.demos)
    report = json.loads((folders[0] / "report.json").read_text())
    (choice, *_) = report["steps"][0]["evidence"]["choice"]
    assert choice["tokens"]["prompt"] > 10
    assert ("preference" in report["steps"][0]["evidence"]) == ("preference" in more)
    scored = evaluate_bundle(folders[0], cache=tmp_path / "fresh cache")
    assert dict(scored.scores) == dict(bundle.manifest.identity["scores"]["shipped"]["test"])
    with load(folders[0], cache_root=tmp_path / "fresh cache") as predictor:
        found = [predictor.predict({"size": row["size"]}) for row in rows[:3]]
        assert set(predictor.output_schema["properties"]) == {"kind", "likely"}
    assert all(one.kind in KINDS and 0 < one.likely <= 1 for one in found)


def test_training_that_a_budget_cut_short_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    rows = [{"size": 1.5 + index, "kind": KINDS[index % 3]} for index in range(18)]
    (tmp_path / "fruit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = make_tiny_lm(tmp_path / "model", ["Say which kind it is. Size: 3.5 Kind: apple", *KINDS] * 20)
    (tmp_path / "tuned.yaml").write_text(SPEC.format(model=model, more="r: 2"))

    def compiled(budget: str | None, **more: Any) -> tuple[int, dict[str, Any], str]:
        """Epochs, the step's evidence and the digest. Nothing but training takes time."""
        folder = compile_with(
            tmp_path / "tuned.yaml",
            CompileSettings(
                out=tmp_path / "out",
                cache=tmp_path / "cache",
                overrides=["optimize.weights.epochs=20", "optimize.strategy=[weights]"],
                budget=None if budget is None else parse_limit(budget),
                clock=lambda: 0.0,
                **more,
            ),
        )
        evidence = json.loads((folder / "report.json").read_text())["steps"][0]["evidence"]
        return evidence["loss"][-1]["epoch"], evidence, read_bundle(folder).manifest.digest

    few, evidence, digest = compiled("0.01 s")
    assert few < 20 and evidence["cut_short"] == [f"{20 - few} of 20 epochs of adapter shared"]
    assert "want of budget: " in (tmp_path / "out" / "report.html").read_text()
    written = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert compiled("0.01 s") == (few, evidence, digest)
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == written, "it was up to date"
    epochs, evidence, whole = compiled("10 h")
    assert epochs == 20 and "cut_short" not in evidence and whole != digest
    assert compiled("0.01 s")[2] == whole, "what nothing cut short is up to date under any budget"
    assert compiled(None, fresh=True)[2] == whole


def test_rounding_without_its_package_is_an_error_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fruit.jsonl").write_text(
        "".join(json.dumps({"size": i, "kind": KINDS[i % 3]}) + "\n" for i in range(18))
    )
    (tmp_path / "tuned.yaml").write_text(SPEC.format(model="nowhere/nothing", more="quantize: 4bit"))
    monkeypatch.setattr("bt_compiler.compiler.identity.find_spec", lambda name: None)
    with pytest.raises(CompileError, match="BTC424") as caught:
        compile_with(tmp_path / "tuned.yaml", CompileSettings(out=tmp_path / "out", cache=tmp_path / "cache"))
    assert "`pip install 'bt-compiler[qlora]'`" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_where_a_launch_file_lies_is_no_part_of_a_compile(tmp_path: Path) -> None:
    said = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: {}\n"
    identities = []
    for name, processes in (("one", 2), ("two", 2), ("three", 3)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [json.dumps({"size": i, "kind": KINDS[i % 3]}) + "\n" for i in range(18)]
        (folder / "fruit.jsonl").write_text("".join(rows))
        (folder / "accelerate.yaml").write_text(said.format(processes))
        model = make_tiny_lm(tmp_path / "model", ["apple"]) if not identities else tmp_path / "model"
        (folder / "tuned.yaml").write_text(SPEC.format(model=model, more="launch: {config: accelerate.yaml}"))
        spec = checked(folder / "tuned.yaml")
        assert spec.sections.optimize.weights.launch == LaunchSection(config=str(folder / "accelerate.yaml"))
        assert str(folder / "accelerate.yaml") in json.dumps(spec.spec.resolved())
        identities.append(compile_identity(spec, seed=0, cache_root=tmp_path / "cache", progress=Silent()))
    assert identities[0] == identities[1]
    assert {part for part in identities[0] if identities[0][part] != identities[2][part]} == {"launch"}
