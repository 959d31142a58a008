"""What a module says to everything is no more than it says to the least of examples, in every format and kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_parts import SPECIES, module

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.engine.window import least_length
from bt_compiler.graph import lower_with_warnings
from bt_compiler.graph.program import Module
from bt_compiler.spec import build_sections, load_spec
from bt_compiler.spec.types import PASSAGES, STR, Field, Type

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))


def length(made: Module) -> tuple[int, int]:
    found = least_length(made, ScriptedBackend())
    assert found is not None
    return found


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_modules_of_every_spec_can_be_measured(path: Path) -> None:
    spec = load_spec(path)
    found = lower_with_warnings(spec, build_sections(spec))
    for made in (*found.program.modules, *(judge.module for judge in found.judges.values())):
        prompt, completion = length(made)
        assert prompt > len(made.signature.instructions.split())
        among = any(item.type.among or (item.type.item and item.type.item.among) for item in made.written)
        assert completion > 0 or among


def test_only_what_is_said_to_every_example_counts() -> None:
    inputs = {"context": PASSAGES, "known": Type(kind="union", options=(STR, Type(kind="null"))), "kind": SPECIES}
    short, long = (module(inputs, {"answer": STR}, instructions=text) for text in ("Answer.", "Answer. " * 100))
    assert length(long)[0] - length(short)[0] == pytest.approx(len("Answer. ") * 99 / 3, abs=2)
    assert length(long)[1] == length(short)[1]


def test_what_may_be_written_counts_nothing_where_only_inputs_tell() -> None:
    among = Type(kind="str", among="context.id")
    assert length(module({"context": PASSAGES}, {"best": among}))[1] == 0
    record = Type(kind="object", fields=(Field(name="note", type=STR), Field(name="n", type=Type(kind="int"))))
    assert length(module({"given": record}, {"good": Type(kind="bool")}))[1] > 0
