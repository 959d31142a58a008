from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_compiler.errors import SpecError
from bt_compiler.graph import Program, Repeat, lower
from bt_compiler.spec import build_sections, load_spec, show_type

MODULES = {
    "write": {"signature": "question, draft -> text, remarks: [str], stars: int, share: float"},
    "rate": {"signature": "draft -> good: bool, grade: enum(a, b)"},
}
CIRCULAR = "follows from nothing but itself"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs")


def lowered(steps: dict[str, Any], out: str, folder: Path) -> Program:
    document = {
        "version": 1,
        "data": "data.jsonl",
        "modules": MODULES,
        "program": {"inputs": {"question": "str", "items": "[str]"}, "steps": steps, "out": {"answer": out}},
        "metric": "exact_match",
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


def loop(carry: dict[str, Any], steps: dict[str, Any]) -> dict[str, Any]:
    return {"repeat": 2, "carry": carry, "steps": steps}


def carried(start: Any, next: Any) -> dict[str, Any]:
    return {"start": start, "next": next}


def write(draft: str) -> dict[str, Any]:
    return {"call": "write", "in": {"question": "$question", "draft": draft}}


def types(program: Program) -> dict[str, str]:
    (node,) = program.nodes
    assert isinstance(node, Repeat)
    return {item.name: show_type(item.type) for item in node.carry}


KEPT = {"true": {"out": {"draft": "$draft", "before": "$before"}}}
WRITTEN = {"false": {"steps": {"w": write("$draft")}, "out": {"draft": "$w.text", "before": "$draft"}}}


@pytest.mark.parametrize("cases", [KEPT | WRITTEN, WRITTEN | KEPT], ids=["kept first", "kept last"])
def test_what_a_case_keeps_has_the_type_of_what_the_other_one_writes(cases: dict[str, Any], folder: Path) -> None:
    carry = {"before": carried("", "$turn.before"), "draft": carried("", "$turn.draft")}
    rate = {"call": "rate", "in": ["draft"]}
    rounds = loop(carry, {"turn": {"switch": "$r.good", "cases": cases}, "r": rate})
    assert types(lowered({"rounds": rounds}, "$rounds.before", folder)) == {"before": "str", "draft": "str"}


@pytest.mark.parametrize("first", ["draft", "seen"])
def test_loops_hand_on_what_starts_from_a_constant(first: str, folder: Path) -> None:
    inner = loop(
        {"notes": {"add": "$w.remarks"}, "text": carried("$draft", "$w.text"), "all": carried("$seen", "$seen")},
        {"w": write("$text")},
    )
    carry = {"draft": carried("", "$tries.text"), "seen": {"add": "$tries.notes"}}
    ordered = {first: carry[first]} | carry
    found = types(lowered({"rounds": loop(ordered, {"tries": inner})}, "$rounds.draft", folder))
    assert found == {"draft": "str", "seen": "[str]"}


@pytest.mark.parametrize(
    ("start", "next", "expected"),
    [
        ("$w0.stars", "$w.share", "float"),
        ("$w0.share", "$w.stars", "float"),
        ("$r0.grade", "$w.text", "str"),
        ("a", "$r.grade", "enum(a, b)"),
        ("$r0.grade", "b", "enum(a, b)"),
    ],
)
def test_the_type_is_the_wider_one_of_start_and_next(start: Any, next: Any, expected: str, folder: Path) -> None:
    steps = {
        "w0": write("$question"),
        "r0": {"call": "rate", "in": {"draft": "$w0.text"}},
        "rounds": loop(
            {"x": carried(start, next), "draft": carried("", "$w.text"), "used": carried("$r0.grade", "$r.grade")},
            {"w": write("$draft"), "r": {"call": "rate", "in": {"draft": "$w.text"}}},
        ),
    }
    node = lowered(steps, "$rounds.x", folder).nodes[-1]
    assert isinstance(node, Repeat)
    assert show_type(node.carry[0].type) == expected


def sources(level: int, levels: int) -> list[str]:
    """What `next` of a loop may name: its own body, what encloses it, and what the loop inside it gives."""
    seen = [f"${name}{above}" for above in range(level + 1) for name in "ab"]
    inner = [f"$l{level + 1}.{name}{level + 1}" for name in "ab"] if level + 1 < levels else []
    return [*seen, *inner, *(f"$s{above}.x" for above in range(level + 1)), f"$m{level}.x", f"$w{level}.text"]


def drawn(data: st.DataObject, levels: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Loops in each other with a switch and a sample each; and name -> the names that its type may follow from."""
    follows: dict[str, list[str]] = {}
    steps: dict[str, Any] = {}
    for level in reversed(range(levels)):
        seen = [f"${name}{above}" for above in range(level + 1) for name in "ab"]
        carry = {}
        for name in data.draw(st.permutations([f"a{level}", f"b{level}"])):
            starts = ["", *(f"${letter}{above}" for above in range(level) for letter in "ab")]
            carry[name] = carried(
                data.draw(st.sampled_from(starts)), data.draw(st.sampled_from(sources(level, levels)))
            )
            follows[f"${name}"] = follows[f"$l{level}.{name}"] = [*carry[name].values()]
        cases = [data.draw(st.sampled_from([*seen, f"$w{level}.text"])) for _ in range(2)]
        follows[f"$s{level}.x"] = cases
        picked = data.draw(st.sampled_from([*seen, f"$w{level}.text"]))
        follows[f"$m{level}.x"] = [picked]
        body = {
            f"s{level}": {
                "switch": f"$r{level}.good",
                "cases": {"true": {"out": {"x": cases[0]}}, "false": {"out": {"x": cases[1]}}},
            },
            f"m{level}": {
                "sample": 2,
                "temperature": 1.0,
                "pick": "majority",
                "steps": {f"v{level}": write(f"$a{level}")},
                "out": {"x": picked, "y": f"$v{level}.text"},
            },
            f"w{level}": write(f"$b{level}"),
            f"r{level}": {"call": "rate", "in": {"draft": f"$w{level}.text"}},
            f"u{level}": write(f"$s{level}.x"),
            f"n{level}": write(f"$m{level}.y"),
            **steps,
        }
        used = {"of_u": f"$u{level}.remarks", "of_n": f"$n{level}.remarks"}
        if level + 1 < levels:
            used["of_l"] = f"$l{level + 1}.of_u"
        body = {name: body[name] for name in data.draw(st.permutations(list(body)))}
        steps = {f"l{level}": loop(carry | {name: {"add": node} for name, node in used.items()}, body)}
    return steps, follows


def grounded(name: str, follows: dict[str, list[str]]) -> bool:
    seen, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name.startswith("$w"):
            return True
        if name not in seen:
            seen.add(name)
            todo += [other for other in follows.get(name, ()) if other]
    return False


@settings(max_examples=60)
@given(data=st.data())
def test_just_what_leads_to_no_output_has_no_type(folder: Path, data: st.DataObject) -> None:
    steps, follows = drawn(data, data.draw(st.integers(1, 3)))
    expected = {name[1:] for name in follows if name[1] in "ab" and not grounded(name, follows)}
    try:
        lowered(steps, "$l0.a0", folder)
        found: list[str] = []
    except SpecError as error:
        found = [item.message for item in error.diagnostics]
        assert {item.code for item in error.diagnostics} == {"BTC214"}
    assert set(found) == {f"the type of carried `{name}` {CIRCULAR}" for name in expected}


WORDS = [
    "$question",
    "$items",
    "$a",
    "$b",
    "$c",
    "$each",
    "$outer.a",
    "$outer.b",
    "$inner.c",
    "$turn.x",
    "$over.x",
    "$tries.x",
    "$w.text",
    "$w.remarks",
    "$v.text",
    "$no.text",
    "$w.no",
    "$nothing",
    "plain",
]
RIGHT = {
    "a": "$inner.c",
    "b start": "",
    "b": "$tries.x",
    "c start": "$b",
    "c": "$turn.x",
    "remarks": "$u.remarks",
    "texts": "$over.x",
    "written": "$w.text",
    "kept": "$c",
    "over": "$items",
    "each": "$v.text",
    "sampled": "$y.text",
    "w": "$c",
    "u": "$turn.x",
    "v": "$each",
    "y": "$a",
}


def mixed(at: dict[str, str]) -> dict[str, Any]:
    """Every kind of block, with the words `at` where references stand."""
    cases = {"true": {"out": {"x": at["kept"]}}, "false": {"out": {"x": at["written"]}}}
    inner = loop(
        {"c": carried(at["c start"], at["c"]), "more": {"add": at["remarks"]}},
        {
            "w": write(at["w"]),
            "r": {"call": "rate", "in": {"draft": "$w.text"}},
            "turn": {"switch": "$r.good", "cases": cases},
            "u": write(at["u"]),
        },
    )
    map = {"map": at["over"], "as": "each", "at_most": 2, "steps": {"v": write(at["v"])}, "out": {"x": at["each"]}}
    tries = {"steps": {"y": write(at["y"])}, "out": {"x": at["sampled"]}}
    carry = {"a": carried("", at["a"]), "b": carried(at["b start"], at["b"]), "texts": {"add": at["texts"]}}
    steps = {"inner": inner, "over": map, "tries": {"sample": 2, "temperature": 1.0, "pick": "majority", **tries}}
    return {"outer": loop(carry | {"more": {"add": "$inner.more"}}, steps)}


def test_constants_start_what_every_kind_of_block_hands_on(folder: Path) -> None:
    found = types(lowered(mixed(RIGHT), "$outer.a", folder))
    assert found == {"a": "str", "b": "str", "texts": "[str]", "more": "[str]"}


@settings(max_examples=100)
@given(words=st.dictionaries(st.sampled_from(sorted(RIGHT)), st.sampled_from(WORDS), min_size=1, max_size=5))
def test_any_words_are_a_program_or_findings(folder: Path, words: dict[str, str]) -> None:
    try:
        lowered(mixed(RIGHT | words), "$outer.a", folder)
    except SpecError as error:
        assert error.diagnostics
