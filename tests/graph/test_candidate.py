from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bt_compiler.graph import (
    SHARED,
    Adapter,
    Candidate,
    Demo,
    Program,
    Prompt,
    candidate_from_json,
    candidate_id,
    candidate_to_json,
    lower,
    program_from_json,
    program_to_json,
    spec_candidate,
)
from bt_compiler.spec import build_sections, load_spec

IRIS = Path(__file__).parents[2] / "specs" / "iris.yaml"


@pytest.fixture(scope="module")
def program() -> Program:
    spec = load_spec(IRIS)
    return lower(spec, build_sections(spec))


def tuned(folder: Path) -> Candidate:
    adapter = Adapter(
        name="step2-shared",
        path=folder / "step2-shared",
        base_model="some/model",
        base_digest="b" * 64,
        rank=8,
        sha256="a" * 64,
    )
    demo = Demo(inputs={"x": 1.5}, outputs={"y": "å"}, example="e1", origin="labelled")
    prompts = {"m": Prompt(instructions="Do it.", demos=(demo,))}
    adapters = {SHARED: adapter}
    return Candidate(
        id=candidate_id(prompts, adapters), prompts=prompts, adapters=adapters, parent="zero-shot", origin="step 2"
    )


def test_a_program_starts_from_the_instructions_of_the_spec(program: Program) -> None:
    candidate = spec_candidate(program)
    assert candidate.prompts == {"classify": Prompt(instructions=program.modules[0].signature.instructions)}
    assert (candidate.id, candidate.origin, candidate.adapters, candidate.parent) == ("zero-shot", "spec", {}, None)


def test_json_and_back_is_the_same_candidate(tmp_path: Path) -> None:
    data = json.loads(json.dumps(candidate_to_json(tuned(tmp_path))))
    back = candidate_from_json(data, tmp_path)
    assert back == tuned(tmp_path)
    assert back.adapters[SHARED].path == tmp_path / "step2-shared"


def test_an_id_is_its_contents(tmp_path: Path) -> None:
    candidate = tuned(tmp_path)
    assert len(candidate.id) == 12
    assert candidate_id(candidate.prompts, candidate.adapters) == candidate.id
    elsewhere = {SHARED: replace(candidate.adapters[SHARED], path=Path("elsewhere"), name="other")}
    assert candidate_id(candidate.prompts, elsewhere) == candidate.id
    retrained = {SHARED: replace(candidate.adapters[SHARED], sha256="c" * 64)}
    other_prompts = {"m": replace(candidate.prompts["m"], demos=())}
    ids = {candidate.id, candidate_id(candidate.prompts, retrained), candidate_id(other_prompts, candidate.adapters)}
    assert len(ids) == 3


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".", "..", "/etc", "a\n"])
def test_an_adapter_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    data = candidate_to_json(tuned(tmp_path))
    data["adapters"][SHARED]["name"] = name
    with pytest.raises(ValueError, match="plain name"):
        candidate_from_json(data, tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path, program: Program) -> None:
    with pytest.raises(ValueError, match="schema version 2"):
        candidate_from_json({**candidate_to_json(tuned(tmp_path)), "schema": 2}, tmp_path)
    with pytest.raises(ValueError, match="schema version None"):
        program_from_json({key: value for key, value in program_to_json(program).items() if key != "schema"})
