"""Programs as JSON values and back; what `program.json` of a bundle holds.

Spans are dropped; attributes at their default are left out. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bt_compiler.graph.candidate import Demo
from bt_compiler.graph.program import (
    Binding,
    Call,
    Carry,
    Case,
    Constant,
    Map,
    Module,
    Node,
    Program,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    RetrieverRef,
    Sample,
    Signature,
    Switch,
    ToolRef,
    UseTool,
    Value,
)
from bt_compiler.graph.serial_candidate import SCHEMA, demos_to_json, versioned
from bt_compiler.spec.sections import Generation
from bt_compiler.spec.types import Field, Type

_TYPE_SCALARS = ("name", "description", "minimum", "maximum", "max_tokens", "among", "probability_of")


def type_to_json(type: Type) -> dict[str, Any]:
    """`{"kind": …}` and what is set beside it."""
    data: dict[str, Any] = {"kind": type.kind}
    data |= {key: getattr(type, key) for key in _TYPE_SCALARS if getattr(type, key) is not None}
    if type.values:
        data["values"] = list(type.values)
    if type.item is not None:
        data["item"] = type_to_json(type.item)
    if type.fields:
        data["fields"] = fields_to_json(type.fields)
    if type.options:
        data["options"] = [type_to_json(option) for option in type.options]
    return data


def type_from_json(data: Mapping[str, Any]) -> Type:
    """The inverse of `type_to_json`. Raises KeyError or TypeError where the shape is wrong."""
    return Type(
        kind=data["kind"],
        **{key: data[key] for key in _TYPE_SCALARS if key in data},
        values=tuple(data.get("values", ())),
        item=type_from_json(data["item"]) if "item" in data else None,
        fields=fields_from_json(data.get("fields", ())),
        options=tuple(type_from_json(option) for option in data.get("options", ())),
    )


def fields_to_json(fields: Sequence[Field]) -> list[dict[str, Any]]:
    """Fields in order."""
    return [
        {"name": field.name, "type": type_to_json(field.type)}
        | ({} if field.description is None else {"description": field.description})
        for field in fields
    ]


def fields_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Field, ...]:
    """The inverse of `fields_to_json`."""
    return tuple(
        Field(name=item["name"], type=type_from_json(item["type"]), description=item.get("description"))
        for item in data
    )


def _value_to_json(value: Value) -> dict[str, Any]:
    if isinstance(value, Constant):
        return {"constant": value.value}
    return {"ref": value.field} if value.step is None else {"step": value.step, "ref": value.field}


def _value_from_json(data: Mapping[str, Any]) -> Value:
    return Constant(value=data["constant"]) if "constant" in data else _ref_from_json(data)


def _ref_from_json(data: Mapping[str, Any]) -> Ref:
    return Ref(step=data.get("step"), field=data["ref"])


def _bindings_to_json(bindings: Sequence[Binding]) -> list[dict[str, Any]]:
    return [{"name": b.name, "value": _value_to_json(b.value), "type": type_to_json(b.type)} for b in bindings]


def _bindings_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Binding, ...]:
    return tuple(
        Binding(name=item["name"], value=_value_from_json(item["value"]), type=type_from_json(item["type"]))
        for item in data
    )


def signature_to_json(signature: Signature) -> dict[str, Any]:
    """Instructions and fields."""
    likely = {"confidences": fields_to_json(signature.confidences)} if signature.confidences else {}
    return {
        "instructions": signature.instructions,
        "inputs": fields_to_json(signature.inputs),
        "outputs": fields_to_json(signature.outputs),
        **likely,
    }


def module_to_json(module: Module) -> dict[str, Any]:
    """All of a module."""
    written: dict[str, Any] = {"demos": demos_to_json(module.demos)} if module.demos else {}
    if module.kind == "react":
        written |= {"tools": [_tool_to_json(tool) for tool in module.tools], "at_most": module.at_most}
    return {
        "name": module.name,
        "kind": module.kind,
        "signature": signature_to_json(module.signature),
        "model": module.model,
        "generation": asdict(module.generation),
        "format": module.format,
        "train": list(module.train),
        **written,
    }


def _module_from_json(data: Mapping[str, Any]) -> Module:
    signature = data["signature"]
    return Module(
        name=data["name"],
        kind=data["kind"],
        signature=Signature(
            instructions=signature["instructions"],
            inputs=fields_from_json(signature["inputs"]),
            outputs=fields_from_json(signature["outputs"]),
            confidences=fields_from_json(signature.get("confidences", ())),
        ),
        model=data["model"],
        generation=Generation(**data["generation"]),
        format=data["format"],
        train=tuple(data["train"]),
        demos=tuple(Demo(**demo) for demo in data.get("demos", ())),
        tools=tuple(_tool_from_json(tool) for tool in data.get("tools", ())),
        at_most=data.get("at_most", 0),
    )


def _carry_to_json(carry: Carry) -> dict[str, Any]:
    data = {
        "name": carry.name,
        "type": type_to_json(carry.type),
        "mode": carry.mode,
        "value": _value_to_json(carry.value),
    }
    return data if carry.start is None else {**data, "start": _value_to_json(carry.start)}


def _carry_from_json(data: Mapping[str, Any]) -> Carry:
    return Carry(
        name=data["name"],
        type=type_from_json(data["type"]),
        mode=data["mode"],
        value=_value_from_json(data["value"]),
        start=_value_from_json(data["start"]) if "start" in data else None,
    )


def _node_to_json(node: Node) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "outputs": fields_to_json(node.outputs), "hash": node.hash}
    match node:
        case Call():
            data |= {"call": node.module, "inputs": _bindings_to_json(node.inputs)}
            if node.slots:
                data["slots"] = list(node.slots)
        case Retrieve():
            data |= {"retrieve": node.retriever, **_asked_to_json(node)}
        case UseTool():
            data |= {"tool": node.tool, "inputs": _bindings_to_json(node.inputs)}
        case Repeat():
            data |= {
                "repeat": node.times,
                "carry": [_carry_to_json(carry) for carry in node.carry],
                "body": [_node_to_json(inner) for inner in node.body],
                "out": _bindings_to_json(node.out),
            }
            if node.until is not None:
                data["until"] = _value_to_json(node.until)
        case Switch():
            data |= {"switch": _value_to_json(node.value), "cases": [_case_to_json(case) for case in node.cases]}
        case Map():
            data |= {"map": _value_to_json(node.over), "item": node.item, "item_type": type_to_json(node.item_type)}
            data |= {"at_most": node.at_most, **_inside_to_json(node.body, node.out)}
        case Sample():
            data |= {"sample": node.times, "temperature": node.temperature, **_inside_to_json(node.body, node.out)}
            if node.best is not None:
                data["best"] = _value_to_json(node.best)
        case Rerank():
            data |= {"rerank": node.retriever, **_asked_to_json(node), "depth": node.depth}
            data |= _inside_to_json(node.body, node.out)
    return data


def _asked_to_json(node: Retrieve | Rerank) -> dict[str, Any]:
    """One text as it is, several as a list."""
    texts = [_value_to_json(text) for text in node.query]
    data = {"query": texts[0] if len(texts) == 1 else texts, "k": node.k}
    return data if node.known is None else {**data, "known": _value_to_json(node.known)}


def _asked_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    texts = data["query"] if isinstance(data["query"], list) else [data["query"]]
    query = tuple(_value_from_json(text) for text in texts)
    return {"query": query, "k": data["k"], "known": _value_from_json(data["known"]) if "known" in data else None}


def _inside_to_json(body: Sequence[Node], out: Sequence[Binding]) -> dict[str, Any]:
    return {"body": [_node_to_json(inner) for inner in body], "out": _bindings_to_json(out)}


def _case_to_json(case: Case) -> dict[str, Any]:
    inside = _inside_to_json(case.body, case.out)
    return inside if case.value is None else {"case": case.value, **inside}


def _node_from_json(data: Mapping[str, Any]) -> Node:
    name, outputs, hash = data["name"], fields_from_json(data["outputs"]), data["hash"]
    if "call" in data:
        inputs = _bindings_from_json(data["inputs"])
        slots = tuple(data.get("slots", ()))
        return Call(name=name, module=data["call"], inputs=inputs, outputs=outputs, slots=slots, hash=hash)
    if "retrieve" in data:
        return Retrieve(name=name, retriever=data["retrieve"], **_asked_from_json(data), outputs=outputs, hash=hash)
    if "tool" in data:
        inputs = _bindings_from_json(data["inputs"])
        return UseTool(name=name, tool=data["tool"], inputs=inputs, outputs=outputs, hash=hash)
    if "switch" in data:
        value, cases = _ref_from_json(data["switch"]), tuple(_case_from_json(case) for case in data["cases"])
        return Switch(name=name, value=value, cases=cases, outputs=outputs, hash=hash)
    body, out = _body_from_json(data["body"]), _bindings_from_json(data["out"])
    if "rerank" in data:
        asked = {"retriever": data["rerank"], **_asked_from_json(data)}
        return Rerank(name=name, **asked, depth=data["depth"], body=body, score=out[0], outputs=outputs, hash=hash)
    if "map" in data:
        return Map(
            name=name,
            over=_ref_from_json(data["map"]),
            item=data["item"],
            item_type=type_from_json(data["item_type"]),
            at_most=data["at_most"],
            body=body,
            out=out,
            outputs=outputs,
            hash=hash,
        )
    if "sample" in data:
        return Sample(
            name=name,
            times=data["sample"],
            temperature=data["temperature"],
            best=_ref_from_json(data["best"]) if "best" in data else None,
            body=body,
            out=out,
            outputs=outputs,
            hash=hash,
        )
    return Repeat(
        name=name,
        times=data["repeat"],
        carry=tuple(_carry_from_json(item) for item in data["carry"]),
        body=body,
        out=out,
        outputs=outputs,
        until=_ref_from_json(data["until"]) if "until" in data else None,
        hash=hash,
    )


def _body_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Node, ...]:
    return tuple(_node_from_json(item) for item in data)


def _case_from_json(data: Mapping[str, Any]) -> Case:
    return Case(value=data.get("case"), body=_body_from_json(data["body"]), out=_bindings_from_json(data["out"]))


def program_to_json(program: Program) -> dict[str, Any]:
    """The program as JSON values, schema version included; equal programs give equal values."""
    return {
        "schema": SCHEMA,
        "name": program.name,
        "inputs": fields_to_json(program.inputs),
        "nodes": [_node_to_json(node) for node in program.nodes],
        "out": _bindings_to_json(program.out),
        "modules": [module_to_json(module) for module in program.modules],
        "retrievers": [asdict(retriever) for retriever in program.retrievers],
        **({"tools": [_tool_to_json(tool) for tool in program.tools]} if program.tools else {}),
    }


def _tool_to_json(tool: ToolRef) -> dict[str, Any]:
    inputs, outputs = fields_to_json(tool.inputs), fields_to_json(tool.outputs)
    more = {key: getattr(tool, key) for key in ("description", "k") if getattr(tool, key) is not None}
    return {"name": tool.name, "kind": tool.kind, "inputs": inputs, "outputs": outputs, **more}


def _tool_from_json(data: Mapping[str, Any]) -> ToolRef:
    inputs, outputs = fields_from_json(data["inputs"]), fields_from_json(data["outputs"])
    more = {key: data[key] for key in ("description", "k") if key in data}
    return ToolRef(name=data["name"], kind=data["kind"], inputs=inputs, outputs=outputs, **more)


def program_from_json(data: Mapping[str, Any]) -> Program:
    """The program, equal to the one written. ValueError for another schema version; KeyError or TypeError for a
    wrong shape; follow it with `verify` where the document may have been tampered with.
    """
    versioned(data, "the program")
    return Program(
        name=data["name"],
        inputs=fields_from_json(data["inputs"]),
        nodes=tuple(_node_from_json(node) for node in data["nodes"]),
        out=_bindings_from_json(data["out"]),
        modules=tuple(_module_from_json(module) for module in data["modules"]),
        retrievers=tuple(RetrieverRef(**retriever) for retriever in data["retrievers"]),
        tools=tuple(_tool_from_json(tool) for tool in data.get("tools", ())),
    )
