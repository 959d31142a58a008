"""Checks of a program that hold after every pass. A failure is a bug in the compiler, never a user's mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bt_compiler.graph.hashing import hashed
from bt_compiler.graph.program import (
    RANKED_PASSAGE,
    RANKED_QUERY,
    RANKS,
    Binding,
    Call,
    Carry,
    Constant,
    Map,
    Module,
    Node,
    Program,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    Sample,
    Switch,
    UseTool,
    Value,
)
from bt_compiler.graph.walk import nodes
from bt_compiler.spec import Field, Type, assignable, convert, show_type
from bt_compiler.spec.types import PASSAGE, PASSAGES, STR


class InvalidProgram(Exception):
    """A program that breaks a rule every program keeps."""


_VISITS = "#visits"
"""No name of a spec: the maximum of its type is how often the nearest loop runs."""
_Names = Mapping[str, Type]
"""`step.field` and names of inputs and carried values -> type, as visible at one place."""


def verify(program: Program) -> None:
    """Raises InvalidProgram at the first rule broken: unique names, references to earlier nodes only, types that fit,
    every input bound once, modules and retrievers known and used, hashes right.
    """
    _unique([item.name for item in program.inputs], "program input")
    _unique([item.name for item in program.out], "program output")
    _unique([item.name for item in program.modules], "module")
    _unique([item.name for item in program.retrievers], "retriever")
    names = {item.name: item.type for item in program.inputs}
    visible = _verify_body(program.nodes, program, names)
    if not program.out:
        raise InvalidProgram("the program gives nothing")
    for binding in program.out:
        _fits(binding.value, binding.type, visible, f"output `{binding.name}`")
    used = {name for _, node in nodes(program) if isinstance(node, Call) for name in (node.module, *node.slots)}
    offered = [tool for module in program.modules for tool in module.tools]
    used_retrievers = {node.retriever for _, node in nodes(program) if isinstance(node, Retrieve | Rerank)}
    used_retrievers |= {tool.name for tool in offered if tool.k is not None}
    for module in program.modules:
        if (module.kind == "react") != bool(module.tools) or bool(module.tools) != (module.at_most > 0):
            raise InvalidProgram(f"`{module.name}` is `{module.kind}` with at most {module.at_most} tool calls")
    if used != {module.name for module in program.modules}:
        raise InvalidProgram(f"modules listed and modules called differ: {sorted(used)}")
    if used_retrievers != {retriever.name for retriever in program.retrievers}:
        raise InvalidProgram(f"retrievers listed and retrievers asked differ: {sorted(used_retrievers)}")
    used_tools = {node.tool for _, node in nodes(program) if isinstance(node, UseTool)}
    used_tools |= {tool.name for tool in offered if tool.k is None}
    if used_tools != {tool.name for tool in program.tools}:
        raise InvalidProgram(f"tools listed and tools called differ: {sorted(used_tools)}")
    if hashed(program) != program:
        raise InvalidProgram("the hash of a node is not that of its content")


def _unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise InvalidProgram(f"a {what} has the name of another: {names}")


def _verify_body(body: Sequence[Node], program: Program, outside: _Names) -> dict[str, Type]:
    if not body:
        raise InvalidProgram("a body without steps")
    _unique([node.name for node in body], "step")
    own = {node.name for node in body}
    names = {key: type for key, type in outside.items() if key.partition(".")[0] not in own or "." not in key}
    for node in body:
        _verify_node(node, program, names)
        _unique([item.name for item in node.outputs], f"output of `{node.name}`")
        names |= {f"{node.name}.{item.name}": item.type for item in node.outputs}
    return names


def _verify_node(node: Node, program: Program, names: _Names) -> None:
    match node:
        case Call():
            try:
                module = program.module(node.module)
            except KeyError as error:
                raise InvalidProgram(f"`{node.name}` calls unknown module `{node.module}`") from error
            _verify_inputs(node.name, node.inputs, module.signature.inputs, names)
            if node.outputs != module.gives:
                raise InvalidProgram(f"outputs of `{node.name}` are not those of module `{module.name}`")
            _verify_slots(node, module, program, names)
        case Retrieve():
            _verify_search(node, program, names)
        case Rerank():
            _verify_search(node, program, names)
            _verify_ranking(node, program, names)
        case UseTool():
            tool = next((item for item in program.tools if item.name == node.tool), None)
            if tool is None or tool.outputs != node.outputs:
                raise InvalidProgram(
                    f"`{node.name}` calls tool `{node.tool}`, which is unknown or gives something else"
                )
            _verify_inputs(node.name, node.inputs, tool.inputs, names)
        case Repeat():
            _verify_loop(node, program, names)
        case Switch():
            _verify_switch(node, program, names)
        case Map():
            _verify_map(node, program, names)
        case Sample():
            _verify_sample(node, program, names)


def _verify_search(node: Retrieve | Rerank, program: Program, names: _Names) -> None:
    if node.retriever not in [item.name for item in program.retrievers]:
        raise InvalidProgram(f"`{node.name}` asks unknown retriever `{node.retriever}`")
    for text in node.query:
        _fits(text, STR, names, f"query of `{node.name}`")
    if node.known is not None:
        _fits(node.known, PASSAGES, names, f"known passages of `{node.name}`")
    if not node.query:
        raise InvalidProgram(f"`{node.name}` asks nothing")
    if node.k < 1 or [(item.name, item.type) for item in node.outputs] != [("passages", PASSAGES)]:
        raise InvalidProgram(f"`{node.name}` retrieves {node.k} into {node.outputs}")


def _verify_ranking(node: Rerank, program: Program, outside: _Names) -> None:
    inside = _verify_body(node.body, program, {**outside, RANKED_QUERY: STR, RANKED_PASSAGE: PASSAGE})
    if node.depth < node.k or len(node.body) != 1 or not isinstance(node.body[0], Call):
        raise InvalidProgram(f"`{node.name}` ranks {node.depth} passages for {node.k} by {len(node.body)} steps")
    _fits(node.score.value, node.score.type, inside, f"score of `{node.name}`")
    if node.score.type.kind not in RANKS:
        raise InvalidProgram(f"`{node.name}` ranks by what has no order")


def _verify_slots(node: Call, first: Module, program: Program, names: _Names) -> None:
    visits = names.get(_VISITS)
    if node.slots and (visits is None or len(node.slots) != visits.maximum or node.slots[0] != node.module):
        raise InvalidProgram(f"`{node.name}` has {len(node.slots)} modules, not one a visit of its loop")
    for slot in node.slots:
        if slot not in [module.name for module in program.modules]:
            raise InvalidProgram(f"`{node.name}` calls unknown module `{slot}`")
        if replace(program.module(slot), name=first.name) != first:
            raise InvalidProgram(f"the modules of `{node.name}` differ")


def _verify_inputs(step: str, bound: Sequence[Binding], expected: Sequence[Field], names: _Names) -> None:
    if [(item.name, item.type) for item in bound] != [(item.name, item.type) for item in expected]:
        raise InvalidProgram(f"inputs of `{step}` are not those of its module, in their order")
    for binding in bound:
        _fits(binding.value, binding.type, names, f"input `{binding.name}` of `{step}`")


def _verify_loop(node: Repeat, program: Program, outside: _Names) -> None:
    if node.times < 1:
        raise InvalidProgram(f"`{node.name}` repeats {node.times} times")
    inside = {**outside, **{carry.name: carry.type for carry in node.carry}}
    inside[_VISITS] = Type(kind="int", maximum=node.times)
    names = _verify_body(node.body, program, inside)
    for carry in node.carry:
        _verify_carry(carry, node.name, outside, names)
    for binding in node.out:
        _fits(binding.value, binding.type, names, f"`out` of `{node.name}`")
    if node.until is not None:
        _fits(node.until, Type(kind="bool"), names, f"`until` of `{node.name}`")
    gives = [(item.name, item.type) for item in node.carry] + [(item.name, item.type) for item in node.out]
    if [(item.name, item.type) for item in node.outputs] != gives:
        raise InvalidProgram(f"outputs of `{node.name}` are not what it carries and gives")


def _verify_switch(node: Switch, program: Program, outside: _Names) -> None:
    what = f"switch `{node.name}`"
    type = _type_of(node.value, outside, what)
    values: list[Any] = [True, False] if type.kind == "bool" else list(type.values)
    named = [case.value for case in node.cases if case.value is not None]
    if type.kind not in ("bool", "enum") or len(set(named)) != len(named) or not set(named) <= set(values):
        raise InvalidProgram(f"{what} has the cases {named} for a value of `{show_type(type)}`")
    rest = [index for index, case in enumerate(node.cases) if case.value is None]
    if rest not in ([], [len(node.cases) - 1]) or (not rest and set(named) != set(values)):
        raise InvalidProgram(f"{what} is not exhaustive")
    for case in node.cases:
        inside = _verify_body(case.body, program, outside) if case.body else dict(outside)
        if [item.name for item in case.out] != [item.name for item in node.outputs]:
            raise InvalidProgram(f"case `{case.label}` of {what} does not give what the others give")
        for binding, field in zip(case.out, node.outputs, strict=True):
            _fits(binding.value, field.type, inside, f"`out` of case `{case.label}` of {what}")


def _verify_map(node: Map, program: Program, outside: _Names) -> None:
    what = f"map `{node.name}`"
    type = _type_of(node.over, outside, what)
    if type.kind != "list" or type.item is None or not assignable(type.item, node.item_type) or node.at_most < 1:
        raise InvalidProgram(f"{what} takes at most {node.at_most} of `{show_type(type)}`")
    inside = _verify_body(node.body, program, {**outside, node.item: node.item_type})
    for binding in node.out:
        _fits(binding.value, binding.type, inside, f"`out` of {what}")
    if [(item.name, item.type) for item in node.outputs] != [
        (item.name, Type(kind="list", item=item.type)) for item in node.out
    ]:
        raise InvalidProgram(f"outputs of {what} are not lists of what it gives")


def _verify_sample(node: Sample, program: Program, outside: _Names) -> None:
    what = f"sample `{node.name}`"
    if node.times < 1 or node.temperature <= 0:
        raise InvalidProgram(f"{what} runs {node.times} times at {node.temperature}")
    inside = _verify_body(node.body, program, outside)
    for binding in node.out:
        _fits(binding.value, binding.type, inside, f"`out` of {what}")
    if node.best is not None and _type_of(node.best, inside, what).kind not in ("int", "float", "bool"):
        raise InvalidProgram(f"{what} picks the best by what is no number")
    if [(item.name, item.type) for item in node.outputs] != [(item.name, item.type) for item in node.out]:
        raise InvalidProgram(f"outputs of {what} are not what it gives")


def _verify_carry(carry: Carry, loop: str, outside: _Names, inside: _Names) -> None:
    what = f"carried `{carry.name}` of `{loop}`"
    _fits(carry.value, carry.type, inside, what)
    if carry.mode == "add" and (carry.type.kind != "list" or carry.start is not None):
        raise InvalidProgram(f"{what} adds to `{show_type(carry.type)}`")
    if carry.mode == "replace":
        if carry.start is None:
            raise InvalidProgram(f"{what} has no start")
        _fits(carry.start, carry.type, outside, what)


def _fits(value: Value, type: Type, names: _Names, what: str) -> None:
    if isinstance(value, Constant):
        try:
            convert(value.value, type)
        except ValueError as error:
            raise InvalidProgram(f"{what}: {error}") from error
        return
    source = _type_of(value, names, what)
    if not assignable(source, type):
        raise InvalidProgram(f"{what} expects `{show_type(type)}`, got `{show_type(source)}`")


def _type_of(ref: Ref, names: _Names, what: str) -> Type:
    source = names.get(ref.field if ref.step is None else f"{ref.step}.{ref.field}")
    if source is None:
        raise InvalidProgram(f"{what} refers to `{ref}`, which is not there before it")
    return source
