"""What a `react` module learns from: each turn is a row, one turn a demo, and labels alone teach nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bt_compiler.artifact.bundle import read_bundle
from bt_compiler.compiler.check import CheckedSpec, checked
from bt_compiler.compiler.compile import CompileSettings, compile_with
from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.executor import Engine
from bt_compiler.engine.progress import Silent
from bt_compiler.engine.request import Request
from bt_compiler.engine.retrieval import open_retrievers
from bt_compiler.engine.tools import open_tools
from bt_compiler.engine.trace import Trace
from bt_compiler.graph import spec_candidate
from bt_compiler.optimize.labelled import labelled_tasks
from bt_compiler.optimize.rows import row_writer, rows_of
from bt_compiler.runtime import load

SPEC = Path(__file__).parents[2] / "specs" / "agent.yaml"
SCRIPTED = "model={id: rule, engine: scripted}"


def shopkeeper(request: Request) -> str:
    """Looks up, calculates, finishes; with seven or more things it cannot multiply."""
    turns = [message.content for message in request.prompt.messages[request.prompt.shared :]]
    found = re.search(r"What do (\d+) (\w+)s cost", turns[0])
    assert found is not None
    count, thing = int(found[1]), found[2]
    if len(turns) == 1:
        return f'Thought: look up\nTool: prices\nArguments: {{"query": "{thing}"}}'
    if len(turns) == 3:
        price = re.search(r"costs (\d+) euros", turns[-1])
        assert price is not None
        sign = "*" if count < 7 else "+"
        return f'Thought: count\nTool: calculator\nArguments: {{"expression": "{count} {sign} {price[1]}"}}'
    return f'Thought: done\nTool: finish\nArguments: {{"total": {turns[-1].removeprefix("Observation: ")}}}'


@pytest.fixture(scope="module")
def spec() -> CheckedSpec:
    return checked(SPEC, [SCRIPTED])


@pytest.fixture(scope="module")
def traces(spec: CheckedSpec, tmp_path_factory: pytest.TempPathFactory) -> list[Trace]:
    cache = tmp_path_factory.mktemp("cache")
    engine = Engine(
        backends={"default": ScriptedBackend(function=shopkeeper)},
        retrievers=open_retrievers(["prices"], spec.sections.retrievers, cache_root=cache, progress=Silent()),
        tools=open_tools(spec.sections.tools),
    )
    return engine.run(spec.program, spec_candidate(spec.program), spec.splits.train)


def test_each_turn_is_a_row_with_the_turns_before_it(spec: CheckedSpec, traces: list[Trace]) -> None:
    zero_shot = spec_candidate(spec.program)
    writer = row_writer(spec.program, zero_shot, spec.sections.optimize.weights, zero_shot)
    rows = rows_of(traces[0], writer=writer, source="self")
    assert [row.module for row in rows] == ["shopkeeper"] * 3
    assert [len(row.prompt.messages) for row in rows] == [2, 4, 6]  # the spec's demos are left out
    assert [row.completion.splitlines()[1] for row in rows] == ["Tool: prices", "Tool: calculator", "Tool: finish"]
    assert rows[1].prompt.messages[2].content == rows[0].completion
    assert {row.label for row in rows} == {None}
    completions = [step.completion.text for step in traces[0].steps if step.completion is not None]
    assert [row.completion for row in rows] == completions


def test_labels_alone_say_nothing_of_a_react_module(spec: CheckedSpec, traces: list[Trace]) -> None:
    assert labelled_tasks(spec.program, spec.splits.train, lambda: traces, print, of=spec.program.modules) == []


def test_demos_are_turns_of_solved_examples_and_survive_the_bundle(tmp_path: Path) -> None:
    overrides = (SCRIPTED, "optimize.strategy=[prompts]", "optimize.prompts={candidates: 3, train: 8, val: 8}")
    folder = compile_with(
        SPEC,
        CompileSettings(
            out=tmp_path / "bundle",
            overrides=overrides,
            cache=tmp_path / "cache",
            opener=lambda _section, _choices: ScriptedBackend(function=shopkeeper),
        ),
    )
    bundle = read_bundle(folder)
    evidence = json.loads((folder / "report.json").read_text())["steps"][0]["evidence"]
    accepted = evidence["bootstrap"]["accepted"]
    assert 0 < accepted < 8 and evidence["bootstrap"]["by_module"] == {"shopkeeper": accepted}
    searched = {item["label"]: item["demos"]["shopkeeper"] for item in evidence["candidates"]}
    assert searched["zero-shot"] == 2 == searched["labelled"] and searched["bootstrapped"] == 2 + min(3, accepted)
    (module,), (written,) = bundle.program.modules, checked(SPEC, overrides).program.modules
    assert (module.tools, module.at_most, module.demos) == (written.tools, written.at_most, written.demos)
    assert bundle.candidate.prompts["shopkeeper"].demos[:2] == written.demos
    with load(folder, cache_root=tmp_path, opener=lambda _: ScriptedBackend(function=shopkeeper)) as predictor:
        assert predictor(question="What do 6 lamps cost?").total == 72.0
