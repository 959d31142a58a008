"""Content hashes of nodes.

A node's hash covers what it does and the hashes of what it depends on: for a call the module's name (its prompt and
adapter slot), kind, signature, model, generation and format. Names of steps and their place in the YAML are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bt_compiler.canonical import digest
from bt_compiler.graph.program import (
    RANKED_PASSAGE,
    RANKED_QUERY,
    Binding,
    Call,
    Carry,
    Case,
    Constant,
    Map,
    Node,
    Program,
    Repeat,
    Rerank,
    Retrieve,
    Sample,
    Switch,
    UseTool,
    Value,
)
from bt_compiler.graph.serial import fields_to_json, module_to_json, type_to_json

_Names = Mapping[str, Any]
"""What a reference stands for: `step.` -> hash of the step; name of an input or carried value -> its JSON identity."""


def hashed(program: Program) -> Program:
    """The program with the hash of every node filled in; earlier hashes are not looked at."""
    inputs = {item.name: ["input", item.name, type_to_json(item.type)] for item in program.inputs}
    return replace(program, nodes=_hashed_body(program.nodes, program, inputs)[0])


def _hashed_body(body: Sequence[Node], program: Program, outside: _Names) -> tuple[tuple[Node, ...], dict[str, Any]]:
    names: dict[str, Any] = dict(outside)
    done: list[Node] = []
    for node in body:
        finished = _hashed_node(node, program, names)
        names[f"{node.name}."] = finished.hash
        done.append(finished)
    return tuple(done), names


def _hashed_node(node: Node, program: Program, names: _Names) -> Node:
    match node:
        case Call():
            content: dict[str, Any] = {
                "call": module_to_json(program.module(node.module)),
                "in": _bindings(node.inputs, names),
            }
            if node.slots:
                content["slots"] = [module_to_json(program.module(slot)) for slot in node.slots]
            return replace(node, hash=digest(content))
        case Retrieve():
            return replace(node, hash=digest(_asked(node, program, names)))
        case Rerank():
            asked = _asked(node, program, names)
            element = {RANKED_QUERY: ["ranked query", asked], RANKED_PASSAGE: ["ranked passage", asked]}
            body, inside = _hashed_body(node.body, program, {**names, **element})
            return replace(
                node, body=body, hash=digest({**asked, "depth": node.depth, "out": _bindings(node.out, inside)})
            )
        case UseTool():
            tool = next((item for item in program.tools if item.name == node.tool), None)
            content = {"tool": [node.tool, None if tool is None else tool.kind], "in": _bindings(node.inputs, names)}
            return replace(node, hash=digest({**content, "outputs": fields_to_json(node.outputs)}))
        case Repeat():
            return _hashed_loop(node, program, names)
        case Switch():
            return _hashed_switch(node, program, names)
        case Map():
            return _hashed_map(node, program, names)
        case Sample():
            body, inside = _hashed_body(node.body, program, names)
            content = {
                "sample": [node.times, node.temperature],
                "best": None if node.best is None else _value(node.best, inside),
                "out": _bindings(node.out, inside),
            }
            return replace(node, body=body, hash=digest(content))


def _asked(node: Retrieve | Rerank, program: Program, names: _Names) -> dict[str, Any]:
    retriever = next((item for item in program.retrievers if item.name == node.retriever), None)
    texts = [_value(text, names) for text in node.query]
    content = {
        "retrieve": [node.retriever, retriever.kind if retriever is not None else None],
        "query": texts[0] if len(texts) == 1 else ["joined", texts],
        "k": node.k,
    }
    return content if node.known is None else {**content, "known": _value(node.known, names)}


def _hashed_switch(node: Switch, program: Program, names: _Names) -> Switch:
    cases: list[Case] = []
    contents: list[Any] = []
    for case in node.cases:
        body, inside = _hashed_body(case.body, program, names)
        cases.append(replace(case, body=body))
        contents.append([case.value, _bindings(case.out, inside)])
    content = {"switch": _value(node.value, names), "cases": contents}
    return replace(node, cases=tuple(cases), hash=digest(content))


def _hashed_map(node: Map, program: Program, names: _Names) -> Map:
    over = _value(node.over, names)
    element = ["element", node.item, type_to_json(node.item_type), over]
    body, inside = _hashed_body(node.body, program, {**names, node.item: element})
    content = {"map": over, "at_most": node.at_most, "out": _bindings(node.out, inside)}
    return replace(node, body=body, hash=digest(content))


def _hashed_loop(node: Repeat, program: Program, outside: _Names) -> Repeat:
    inside = dict(outside) | {carry.name: _carried(carry, outside) for carry in node.carry}
    body, names = _hashed_body(node.body, program, inside)
    content = {
        "repeat": node.times,
        "carry": [[_carried(carry, outside), _value(carry.value, names)] for carry in node.carry],
        "out": _bindings(node.out, names),
        "until": None if node.until is None else _value(node.until, names),
        "outputs": fields_to_json(node.outputs),
    }
    return replace(node, body=body, hash=digest(content))


def _carried(carry: Carry, outside: _Names) -> list[Any]:
    start = None if carry.start is None else _value(carry.start, outside)
    return ["carried", carry.name, carry.mode, type_to_json(carry.type), start]


def _bindings(bindings: Sequence[Binding], names: _Names) -> dict[str, Any]:
    return {item.name: _value(item.value, names) for item in bindings}


def _value(value: Value, names: _Names) -> Any:
    if isinstance(value, Constant):
        return ["constant", value.value]
    return names[value.field] if value.step is None else [names[f"{value.step}."], value.field]
