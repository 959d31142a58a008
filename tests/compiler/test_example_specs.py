"""Every spec in `specs/` that brings its own data compiles to a bundle that loads, on an engine that answers at random
within the output grammar, and the same again from an empty cache.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.canonical import seed_of
from bt_compiler.compiler.check import checked
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.compiler.evaluate import evaluate_bundle
from bt_compiler.compiler.plan import plan
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.request import Request
from bt_compiler.runtime import load
from bt_compiler.spec.sections import ModelSection

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
SPECS = Path(__file__).parents[2] / "specs"
OTHERS = ("gsm8k", "hotpotqa", "iris", "iris_cot")
"""Their data are not in the repository, or they are compiled elsewhere."""
NAMES = sorted(path.stem for path in SPECS.glob("*.yaml") if path.stem not in OTHERS)
SCRIPTED = "{id: rule, engine: scripted}"
OVERRIDES = (
    "optimize.strategy=[prompts]",
    "optimize.prompts={candidates: 0, max_bootstrapped_demos: 1, max_labeled_demos: 1, train: 3, val: 4}",
)


def overrides_of(name: str) -> tuple[str, ...]:
    """No model is looked for: those of the spec are replaced by scripted ones of the same name."""
    if name == "two_models":
        large = ("models.large.engine=scripted", "models.large.endpoints=null")
        return (*OVERRIDES, "models.small.engine=scripted", *large)
    if name == "judged_summary":
        judge = ("models.judge.engine=scripted", "models.judge.endpoints=null")
        return (*OVERRIDES, "models.writer.engine=scripted", *judge)
    return (*OVERRIDES, f"model={SCRIPTED}")


def at_random(request: Request) -> str:
    from engine_parts import walk

    assert request.grammar is not None
    key = ScriptedBackend().prompt_key(request.prompt)
    return walk(request.grammar.lark, seed_of(key, request.sampling.seed), stop=0.2)[0]


def compiled(name: str, folder: Path, *, scramble: int | None) -> Path:
    return compile_with(
        SPECS / f"{name}.yaml",
        CompileSettings(
            out=folder / "bundle",
            overrides=overrides_of(name),
            cache=folder / "cache",
            opener=lambda section, _: ScriptedBackend(function=at_random, scramble=scramble, identity=section.name),
        ),
    )


def test_a_judged_bundle_is_scored_by_its_judge_and_says_how_far_people_agree(tmp_path: Path) -> None:
    folder = compiled("judged_summary", tmp_path, scramble=None)
    judge: list[str] = []

    def counting(section: ModelSection) -> ScriptedBackend:
        def answer(request: Request) -> str:
            judge.append(section.name)
            return at_random(request)

        return ScriptedBackend(function=answer, identity=section.name)

    report = evaluate_bundle(folder, cache=tmp_path / "other cache", opener=counting)
    shipped = read_bundle(folder).manifest.identity["scores"]["shipped"]["test"]
    assert [list(pair) for pair in report.scores] == shipped
    assert set(judge) == {"writer", "judge"}
    assert report.agreement is not None and report.agreement.rated == report.agreement.examples == len(shipped)
    told = json.loads((folder / "report.json").read_text())["judge"]
    assert told["examples"] == told["rated"] == 5 and told["off_scale"] == 0  # dev and test
    assert "Cohen" in (folder / "report.html").read_text()
    with load(folder, cache_root=tmp_path, opener=counting) as predictor:
        judge.clear()
        predictor.predict({"notice": "The pool is closed."})
    assert judge == ["writer"]  # who runs a bundle needs no judge


@pytest.mark.parametrize("name", NAMES)
def test_an_example_spec_compiles_whatever_order_completions_come_in(name: str, tmp_path: Path) -> None:
    first = compiled(name, tmp_path / "one", scramble=None)
    second = compiled(name, tmp_path / "two", scramble=7)
    bundle = read_bundle(first)
    assert bundle.manifest.digest == read_bundle(second).manifest.digest
    found = checked(SPECS / f"{name}.yaml", overrides_of(name))
    assert plan(found).to_text()
    example = (found.splits.dev or found.splits.train)[0]
    with load(first, cache_root=tmp_path, opener=lambda _: ScriptedBackend(function=at_random)) as predictor:
        (result,) = predictor.batch([example.inputs])
    if "error" in result:  # a random expression is no arithmetic
        assert (name, result["error"]["code"]) == ("tools", "BTC540")
    else:
        assert set(result["outputs"]) == {item.name for item in bundle.program.out}
