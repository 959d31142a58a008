from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_compiler.errors import SpecError
from bt_compiler.graph import (
    Call,
    Constant,
    InvalidProgram,
    Program,
    Ref,
    Repeat,
    Retrieve,
    lower,
    nodes,
    program_from_json,
    program_to_json,
    verify,
    visits,
)
from bt_compiler.spec import build_sections, load_spec

TWO_HOPS: dict[str, Any] = {
    "version": 1,
    "data": "data.jsonl",
    "retrievers": {"wiki": {"kind": "bm25", "corpus": "corpus.jsonl", "k": 5}},
    "modules": {
        "query": {"kind": "chain_of_thought", "signature": "context: [Passage], question, tone -> query, enough: bool"},
        "answer": {"signature": "context: [Passage], question -> answer"},
        "polish": {"signature": "text -> answer"},
    },
    "program": {
        "inputs": {"question": "str"},
        "steps": {
            "hops": {
                "repeat": 3,
                "until": "$hop.enough",
                "carry": {
                    "context": {"add": "$found.passages"},
                    "last": {"start": "$question", "next": "$hop.query"},
                },
                "steps": {
                    "hop": {
                        "call": "query",
                        "in": {"context": "$context", "question": "$last", "tone": "$$5 a word"},
                    },
                    "found": {"retrieve": "wiki", "in": {"query": "$hop.query"}, "k": 2},
                },
                "out": {"thought": "$hop.reasoning"},
            },
            "draft": {"call": "answer", "in": {"context": "$hops.context", "question": "$hops.thought"}},
            "final": {"call": "polish", "in": {"text": "$draft.answer"}},
        },
        "out": {"answer": "$final.answer"},
    },
    "metric": "exact_match",
}


def lowered(document: dict[str, Any], folder: Path) -> Program:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs")


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    return lowered(TWO_HOPS, folder)


def node(program: Program, path: str) -> Any:
    return dict(nodes(program))[path]


def permuted(value: Any, random: random.Random) -> Any:
    """The document with the order of steps changed at every depth, and nothing else."""
    if not isinstance(value, dict):
        return value
    done = {key: permuted(inner, random) for key, inner in value.items()}
    if "steps" in done:
        names = list(done["steps"])
        random.shuffle(names)
        done["steps"] = {name: done["steps"][name] for name in names}
    return done


@settings(max_examples=30)
@given(random=st.randoms(use_true_random=False))
def test_order_of_steps_changes_neither_program_nor_hashes(
    program: Program, folder: Path, random: random.Random
) -> None:
    assert lowered(permuted(TWO_HOPS, random), folder) == program


def test_nodes_are_ordered_by_references_and_typed(program: Program) -> None:
    assert [path for path, _ in nodes(program)] == ["hops", "hops/hop", "hops/found", "draft", "final"]
    hop = node(program, "hops/hop")
    assert [item.value for item in hop.inputs] == [
        Ref(step=None, field="context"),
        Ref(step=None, field="last"),
        Constant(value="$5 a word"),
    ]
    assert [field.name for field in hop.outputs] == ["reasoning", "query", "enough"]
    hops = node(program, "hops")
    assert [field.name for field in hops.outputs] == ["context", "last", "thought"]
    assert hops.until == Ref(step="hop", field="enough")
    assert node(program, "hops/found").k == 2
    assert visits(program) == {"hops": 1, "hops/hop": 3, "hops/found": 3, "draft": 1, "final": 1}


def test_unused_modules_are_left_out_and_used_ones_stand_in_order_of_use(folder: Path) -> None:
    document = {**TWO_HOPS, "modules": {"spare": {"signature": "a -> b"}, **TWO_HOPS["modules"]}}
    assert [module.name for module in lowered(document, folder).modules] == ["query", "answer", "polish"]


def test_same_named_inputs_are_bound_by_a_list(folder: Path) -> None:
    document = yaml.safe_load(yaml.safe_dump(TWO_HOPS))
    document["modules"]["query"]["signature"] = "context: [Passage], question -> query, enough: bool"
    document["program"]["steps"]["hops"]["steps"]["hop"]["in"] = ["question", "context"]
    program = lowered(document, folder)
    assert [str(item.value) for item in node(program, "hops/hop").inputs] == ["$context", "$question"]


def test_one_module_is_a_program_by_itself(folder: Path) -> None:
    document = {
        "version": 1,
        "data": "d.csv",
        "modules": {"classify": {"kind": "chain_of_thought", "signature": "text -> label"}},
        "metric": "accuracy",
    }
    program = lowered(document, folder)
    assert [field.name for field in program.inputs] == ["text"]
    assert [(item.name, str(item.value)) for item in program.out] == [("label", "$classify.label")]


def test_a_module_has_its_own_generation_model_and_format(folder: Path) -> None:
    document = {
        "version": 1,
        "data": "d.csv",
        "model": {"id": "a/b", "generation": {"max_tokens": 50, "top_p": 0.5}},
        "models": {"large": "a/c"},
        "format": "json",
        "modules": {
            "one": {"signature": "text -> label", "generation": {"temperature": 0.5}},
            "two": {"signature": "label -> other", "model": "large", "format": "own.jinja", "train": ["prompt"]},
        },
        "program": {
            "inputs": {"text": "str"},
            "steps": {
                "a": {"call": "one", "in": ["text"]},
                "b": {"call": "two", "in": {"label": "$a.label"}},
            },
            "out": {"other": "$b.other"},
        },
        "metric": "accuracy",
    }
    one, two = lowered(document, folder).modules
    assert (one.generation.max_tokens, one.generation.top_p, one.generation.temperature) == (50, 0.5, 0.5)
    assert (one.model, one.format, one.train) == ("default", "json", ("prompt", "weights"))
    assert (two.model, two.format, two.train) == ("large", str(folder / "own.jinja"), ("prompt",))
    assert two.generation.max_tokens == 128


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(yaml.safe_dump(TWO_HOPS, sort_keys=False))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "same"),
    [
        (("modules", "query", "signature"), "context: [Passage], question, tone -> query, enough: bool, why", set()),
        (("modules", "query", "kind"), "predict", None),
        (("modules", "query", "generation"), {"max_tokens": 7}, set()),
        (("modules", "query", "format"), "json", set()),
        (("modules", "answer", "format"), "json", {"hops", "hops/hop", "hops/found"}),
        (("modules", "polish", "format"), "json", {"hops", "hops/hop", "hops/found", "draft"}),
        (("program", "steps", "hops", "repeat"), 2, {"hops/hop", "hops/found"}),
        (("program", "steps", "hops", "steps", "found", "k"), 9, {"hops/hop"}),
        (("program", "steps", "draft", "in", "question"), "$question", {"hops", "hops/hop", "hops/found"}),
        (("name",), "other", {"hops", "hops/hop", "hops/found", "draft", "final"}),
    ],
)
def test_a_hash_covers_what_the_node_does_and_depends_on(
    program: Program, folder: Path, path: tuple[str, ...], value: Any, same: set[str] | None
) -> None:
    if same is None:  # without `reasoning` the loop has nothing to give by that name
        with pytest.raises(SpecError):
            lowered(changed(path, value), folder)
        return
    before = {path: node.hash for path, node in nodes(program)}
    after = {path: node.hash for path, node in nodes(lowered(changed(path, value), folder))}
    assert {path for path, found in after.items() if found == before[path]} == same


def test_names_of_steps_are_not_in_the_hash(program: Program, folder: Path) -> None:
    text = yaml.safe_dump(TWO_HOPS, sort_keys=False).replace("draft", "sketch").replace("hops", "rounds")
    renamed = lowered(yaml.safe_load(text), folder)
    assert [node.hash for _, node in nodes(renamed)] == [node.hash for _, node in nodes(program)]


def test_a_loop_in_a_loop_sees_what_encloses_it(folder: Path) -> None:
    document = changed(("program", "steps", "hops"), {})
    inner = TWO_HOPS["program"]["steps"]["hops"]
    document["program"]["steps"]["hops"] = {
        "repeat": 2,
        "carry": {"context": {"add": "$inner.context"}, "seed": {"start": "$question", "next": "$inner.last"}},
        "steps": {
            "inner": {**inner, "carry": {**inner["carry"], "last": {"start": "$seed", "next": "$hop.query"}}},
        },
        "out": {"thought": "$inner.thought"},
    }
    program = lowered(document, folder)
    assert visits(program)["hops/inner/hop"] == 6
    assert program_from_json(program_to_json(program)) == program


REFERENCES = [
    "$question",
    "$context",
    "$last",
    "$hops.context",
    "$hops.thought",
    "$hop.query",
    "$hop.enough",
    "$found.passages",
    "$draft.answer",
    "$final.answer",
    "$nothing",
    "$no.thing",
    "$labels.answer",
    "plain",
    "$$5",
    3,
    None,
    [],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [place for key, inner in value.items() for place in places(inner, (*path, key))]
    return [path] if isinstance(value, str) and path[0] == "program" and path[1] != "inputs" else []


@settings(max_examples=80)
@given(data=st.data())
def test_any_wrong_reference_is_a_diagnostic_and_never_a_crash(folder: Path, data: st.DataObject) -> None:
    document = yaml.safe_load(yaml.safe_dump(TWO_HOPS, sort_keys=False))
    found = places(document)
    for place in data.draw(st.lists(st.sampled_from(found), min_size=1, max_size=4, unique=True)):
        target = document
        for key in place[:-1]:
            target = target[key]
        target[place[-1]] = data.draw(st.sampled_from(REFERENCES))
    try:
        lowered(document, folder)
    except SpecError as error:
        assert error.diagnostics
        assert all(item.span is not None for item in error.diagnostics)


def broken_programs(program: Program) -> dict[str, Program]:
    hops, draft, final = program.nodes
    assert isinstance(hops, Repeat) and isinstance(draft, Call) and isinstance(final, Call)
    hop, found = hops.body
    assert isinstance(hop, Call) and isinstance(found, Retrieve)
    wrong_ref = replace(final.inputs[0], value=Ref(step="draft", field="nothing"))
    wrong_type = replace(final.inputs[0], value=Ref(step="hops", field="context"))
    backwards = replace(hops, body=(found, hop))
    start_lost = replace(hops, carry=(hops.carry[0], replace(hops.carry[1], start=None)))
    return {
        "order": replace(program, nodes=(draft, hops, final)),
        "order in a loop": replace(program, nodes=(backwards, draft, final)),
        "same name twice": replace(program, nodes=(hops, draft, final, final)),
        "reference to nothing": replace(program, nodes=(hops, draft, replace(final, inputs=(wrong_ref,)))),
        "type": replace(program, nodes=(hops, draft, replace(final, inputs=(wrong_type,)))),
        "input lost": replace(program, nodes=(hops, replace(draft, inputs=draft.inputs[:1]), final)),
        "unknown module": replace(program, nodes=(hops, draft, replace(final, module="other"))),
        "unknown retriever": replace(program, retrievers=()),
        "module without use": replace(program, modules=(*program.modules, replace(program.modules[0], name="more"))),
        "stale hash": replace(program, nodes=(hops, draft, replace(final, hash="0" * 64))),
        "loop that never runs": replace(program, nodes=(replace(hops, times=0), draft, final)),
        "no start": replace(program, nodes=(start_lost, draft, final)),
        "until no bool": replace(program, nodes=(replace(hops, until=Ref(step="hop", field="query")), draft, final)),
        "outputs of a loop": replace(program, nodes=(replace(hops, outputs=hops.outputs[:2]), draft, final)),
        "gives nothing": replace(program, out=()),
    }


def test_verify_sees_every_broken_rule(program: Program) -> None:
    for what, broken in broken_programs(program).items():
        try:
            verify(broken)
        except InvalidProgram:
            continue
        pytest.fail(f"verify lets pass: {what}")


def test_verify_takes_what_lowering_gives(program: Program) -> None:
    verify(program)
