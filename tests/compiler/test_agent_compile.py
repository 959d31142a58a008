"""The agent's spec on a real, tiny model: turns are decoded under the grammar, learnt from, and answer again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.opening import backend_opener
from bt_compiler.engine.progress import Silent
from bt_compiler.runtime import load

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
SPECS = Path(__file__).parents[2] / "specs"
OVERRIDES = (
    "modules.shopkeeper.demos=null",
    "modules.shopkeeper.generation={max_tokens: 10}",
    "modules.shopkeeper.at_most=2",
    "data.split={train: 8, dev: 3, test: 2}",
    "optimize.accept={at_least: 0}",
    "optimize.weights={sources: [self], epochs: 1, r: 2, alpha: 4}",
)


@pytest.mark.slow
def test_an_agent_is_tuned_on_its_own_turns(tmp_path: Path) -> None:
    from tiny_lm import make_tiny_lm

    text = (SPECS / "agent.yaml").read_text() + (SPECS / "data" / "shop.jsonl").read_text()
    lm = make_tiny_lm(tmp_path / "lm", text.splitlines() * 4)
    overrides = (*OVERRIDES, f"data.path={SPECS / 'data' / 'shop.jsonl'}", f"model={{id: {lm}, dtype: float32}}")
    folder = compile_with(
        SPECS / "agent.yaml",
        CompileSettings(
            out=tmp_path / "bundle",
            overrides=overrides,
            cache=tmp_path / "cache",
            opener=backend_opener(tmp_path / "cache", Silent()),
        ),
    )
    bundle = read_bundle(folder)
    (step,) = bundle.manifest.strategy
    assert step == "weights"
    for split, count in (("dev", 3), ("test", 2)):
        assert bundle.manifest.scores["shipped"][split]["n"] == count
        assert bundle.manifest.scores["shipped"][split]["failures"] == 0  # whatever it knows, each turn is well-formed
    with load(folder, cache_root=tmp_path / "cache") as predictor:
        answer = predictor(question="What do 3 lamps cost?")
    assert isinstance(answer.total, float)
