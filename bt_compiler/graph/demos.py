"""Demos that a module has in the spec: a value for every field, in its type.

A demo of a `react` module is one of its turns, with the turns before it in `trajectory`. Knows nothing of data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.candidate import Demo
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import ARGUMENTS, FINISH, OBSERVATION, TOOL, TRAJECTORY, Module
from bt_compiler.spec import Field, Type, convert, show_type
from bt_compiler.spec.types import STR


def lower_demo(module: Module, raw: Mapping[str, Any], path: SpecPath, findings: Findings) -> Demo | None:
    """One demo written in the spec; a rationale, thought or trajectory may be left out. None after findings."""
    react = module.kind == "react"
    fields = {item.name: item.type for item in (*module.signature.inputs, *_written(module, raw.get(TOOL)))}
    values: dict[str, Any] = {}
    before = len(findings.items)
    for name, node in raw.items():
        if react and name == TRAJECTORY:
            values[TRAJECTORY] = _trajectory(module, node, (*path, name), findings)
        elif name in fields:
            what = f"`{name}` of the demo is not `{show_type(fields[name])}`"
            values[name] = _converted(node, fields[name], what, (*path, name), findings)
        else:
            help = did_you_mean(name, fields, what=f"fields of `{module.name}`")
            findings.add("BTC234", f"module `{module.name}` has no field `{name}`", (*path, name), key=True, help=help)
    outputs = (TOOL, ARGUMENTS) if react else tuple(item.name for item in module.signature.outputs)
    missing = [name for name in (*(item.name for item in module.signature.inputs), *outputs) if name not in raw]
    if missing:
        shown = ", ".join(f"`{name}`" for name in missing)
        findings.add("BTC234", f"the demo lacks {shown}", path, help="a demo has a value for every input and output")
    if len(findings.items) > before:
        return None
    inputs = {item.name: values[item.name] for item in module.signature.inputs}
    return Demo(
        inputs={**inputs, TRAJECTORY: values.get(TRAJECTORY, [])} if react else inputs,
        outputs={item.name: values[item.name] for item in module.written if item.name in values},
        origin="written",
    )


def _converted(node: Any, type: Type, what: str, path: SpecPath, findings: Findings) -> Any:
    try:
        return convert(node, type)
    except ValueError as error:
        findings.add("BTC234", f"{what}: {error}", path)
        return None


def _written(module: Module, tool: Any) -> Iterator[Field]:
    """What a completion shows, with the arguments of the tool that the demo names."""
    for item in module.written:
        if module.kind == "react" and item.name == ARGUMENTS and isinstance(tool, str):
            known = tool == FINISH or tool in [one.name for one in module.tools]
            fields = module.arguments(tool) if known else ()
            yield Field(name=ARGUMENTS, type=Type(kind="object", fields=fields))
        else:
            yield item


def _trajectory(module: Module, written: Any, path: SpecPath, findings: Findings) -> list[Any]:
    """The turns before the demo's own: what the model wrote, and the observation that came of it."""
    if not isinstance(written, list):
        findings.add("BTC234", "`trajectory` of the demo is not a list of turns", path)
        return []
    found = []
    for place, turn in enumerate(written):
        tool = turn.get(TOOL) if isinstance(turn, Mapping) else None
        type = Type(kind="object", name="turn", fields=(*_written(module, tool), Field(name=OBSERVATION, type=STR)))
        found.append(_converted(turn, type, f"turn {place + 1} of the trajectory", (*path, place), findings))
    return found
