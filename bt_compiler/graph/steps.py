"""Steps of the spec to nodes, with everything they refer to resolved; `loops` and `blocks` hold what blocks need.

First every name of a body is declared (types that follow from others are `settle`d then), then every step is lowered,
then the steps are put in the order of their references. Their place in the YAML decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.bindings import bind_inputs
from bt_compiler.graph.blocks import (
    Block,
    Lowered,
    declare_map,
    declare_sample,
    declare_switch,
    insides,
    lower_map,
    lower_sample,
    lower_switch,
)
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.inference import Rule, fields_of
from bt_compiler.graph.loops import declare_loop, lower_loop_parts
from bt_compiler.graph.program import Call, Module, Node, Repeat, Rerank, Retrieve, UseTool
from bt_compiler.graph.ranking import ranked, ranking_module
from bt_compiler.graph.scope import Scope, order, typed
from bt_compiler.graph.searches import RETRIEVED, bind_search
from bt_compiler.spec.sections import RetrieverSection, ToolSection

T = TypeVar("T")

_MISLED = frozenset(f"BTC2{number:02d}" for number in (0, 1, 3, 4, 5, 10, 11, 12, 16, 17, 28, 32))
"""Codes of values that lead nowhere or to the wrong place: while there is one, a step without use is not blamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What steps may name, and what was named so far."""

    modules: Mapping[str, Module | None]
    """None: the module has findings of its own."""
    retrievers: Mapping[str, RetrieverSection]
    tools: Mapping[str, ToolSection]
    findings: Findings
    called: set[str] = field(default_factory=set)
    """Modules, retrievers and tools that some step names."""
    rules: list[Rule] = field(default_factory=list)
    """Of the names whose types follow from those of others."""


def declare_steps(steps: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> None:
    """Enters every step of a body into `scope`, blocks with their insides."""
    for name, raw in steps.items():
        for key, kind, at, inner in insides(raw):
            inside = Scope(owner=name, kind=kind, times=raw.get("repeat", 0), parent=scope)
            scope.children[f"{name}/{key}" if key else name] = inside
            declare_steps(inner.get("steps", {}), (*path, name, *at, "steps"), inside, declared)
        if "repeat" in raw:
            scope.steps[name] = declare_loop(raw, scope.children[name], declared.rules)
        elif "switch" in raw:
            scope.steps[name] = declare_switch(name, raw, scope, declared.rules)
        elif "map" in raw:
            scope.steps[name] = declare_map(raw, scope.children[name], declared.rules)
        elif "sample" in raw:
            scope.steps[name] = declare_sample(raw, scope.children[name], declared.rules)
        elif "retrieve" in raw:
            scope.steps[name] = typed(RETRIEVED)
        elif "tool" in raw:
            tool = declared.tools.get(raw["tool"])
            scope.steps[name] = None if tool is None else typed(tool.outputs)
        else:
            module = declared.modules.get(raw["call"])
            scope.steps[name] = None if module is None else typed(module.gives)


def lower_steps(steps: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> dict[str, Node | None]:
    """Every step of a body by name; None where it has findings. Order them with `ordered` once all is resolved."""
    return {name: _lower_step(name, raw, (*path, name), scope, declared) for name, raw in steps.items()}


def ordered(
    lowered: Mapping[str, Node | None], path: SpecPath, scope: Scope, findings: Findings
) -> tuple[Node, ...] | None:
    """The nodes of a body in the order of their references; cycles and steps without use are findings."""
    names, cycles = order(lowered, scope.needs)
    for cycle in cycles:
        steps = ", ".join(f"`{a}` needs `{b}`" for a, b in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
        findings.add(
            "BTC208",
            f"steps wait for each other: {steps}",
            (*path, cycle[0]),
            key=True,
            help="a value from the visit before comes through `repeat` with `carry`",
        )
    if not any(item.code in _MISLED for item in findings.items):
        for name in lowered:
            if name not in scope.used:
                findings.add(
                    "BTC206",
                    f"step `{name}` is used by nothing",
                    (*path, name),
                    key=True,
                    help="refer to one of its outputs, in another step or in `program.out`, or leave it out",
                )
    nodes = [lowered[name] for name in names]
    return None if cycles or any(node is None for node in nodes) else tuple(node for node in nodes if node is not None)


def _lower_step(name: str, raw: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> Node | None:
    if "call" in raw:
        return _lower_call(name, raw, path, scope, declared)
    if "retrieve" in raw:
        return _lower_retrieve(name, raw, path, scope, declared)
    if "tool" in raw:
        return _lower_tool(name, raw, path, scope, declared)
    if "repeat" in raw:
        return _lower_repeat(name, raw, path, scope, declared)

    def lower_body(inner: Mapping[str, Any], at: SpecPath, inside: Scope, parts: Callable[[], T]) -> Lowered[T]:
        return _lower_body(inner, at, inside, parts, declared)

    step = Block(name=name, raw=raw, path=path, scope=scope, findings=declared.findings, lower_body=lower_body)
    if "switch" in raw:
        return lower_switch(step)
    return lower_map(step) if "map" in raw else lower_sample(step)


def _lower_body(
    raw: Mapping[str, Any], path: SpecPath, inside: Scope, parts: Callable[[], T], declared: Declared
) -> Lowered[T]:
    """The steps of a block at `path`, and what `parts` makes of its other keys; `parts` comes before the order, for
    what it refers to counts as used.
    """
    steps_path: SpecPath = (*path, "steps")
    lowered = lower_steps(raw.get("steps", {}), steps_path, inside, declared)
    found = parts()
    return Lowered(ordered(lowered, steps_path, inside, declared.findings), found)


def _lower_call(name: str, raw: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> Call | None:
    callee, findings = raw["call"], declared.findings
    if callee not in declared.modules:
        help = (
            f"`{callee}` is a retriever: write `retrieve: {callee}`"
            if callee in declared.retrievers
            else did_you_mean(callee, declared.modules, what="modules")
        )
        findings.add("BTC202", f"unknown module `{callee}`", (*path, "call"), help=help)
    declared.called.add(callee)
    module = declared.modules.get(callee)
    expected = None if module is None else module.signature.inputs
    inputs = bind_inputs(
        raw.get("in"), expected, what=f"module `{callee}`", step=name, path=path, scope=scope, findings=findings
    )
    slots = _slots(raw, path, scope, findings)
    if module is None or inputs is None or slots is None:
        return None
    return Call(
        name=name,
        module=slots[0] if slots else callee,
        inputs=inputs,
        outputs=module.gives,
        slots=slots,
        span=findings.spec.span(path),
    )


def _slots(raw: Mapping[str, Any], path: SpecPath, scope: Scope, findings: Findings) -> tuple[str, ...] | None:
    """The modules of the visits of the nearest loop; empty where all calls are tied, None after findings."""
    if not raw.get("per_visit", False):
        return ()
    loop = next((place for place in scope.outward() if place.kind == "loop" and place.owner is not None), None)
    if loop is None:
        help = "leave it out, or put the call into the steps of a `repeat`"
        findings.add("BTC227", "`per_visit` outside a loop", (*path, "per_visit"), key=True, help=help)
        return None
    return tuple(f"{raw['call']}#{visit + 1}" for visit in range(loop.times))


def _lower_retrieve(
    name: str, raw: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared
) -> Retrieve | Rerank | None:
    asked, findings = raw["retrieve"], declared.findings
    retriever = declared.retrievers.get(asked)
    if retriever is None:
        help = (
            f"`{asked}` is a module: write `call: {asked}`"
            if asked in declared.modules
            else did_you_mean(asked, declared.retrievers, what="retrievers")
        )
        findings.add("BTC202", f"unknown retriever `{asked}`", (*path, "retrieve"), help=help)
    declared.called.add(asked)
    what = f"retriever `{asked}`"
    inputs = bind_search(raw["in"], what=what, step=name, path=path, scope=scope, findings=findings)
    judge = None if retriever is None else ranking_module(retriever)
    if judge is not None and judge not in declared.modules:
        help = did_you_mean(judge, declared.modules, what="modules")
        findings.add("BTC202", f"unknown module `{judge}`", ("retrievers", asked, "module"), help=help)
    if retriever is None or inputs is None:
        return None
    step = Retrieve(
        name=name,
        retriever=asked,
        query=inputs.query,
        known=inputs.known,
        k=raw.get("k", retriever.k),
        outputs=RETRIEVED,
        span=findings.spec.span(path),
    )
    if judge is None:
        return step
    declared.called.add(judge)
    module = declared.modules.get(judge)
    return None if module is None else ranked(step, retriever, module, findings)


def _lower_tool(name: str, raw: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> UseTool | None:
    asked, findings = raw["tool"], declared.findings
    tool = declared.tools.get(asked)
    if tool is None:
        help = did_you_mean(asked, declared.tools, what="tools") if declared.tools else "declare it under `tools`"
        findings.add("BTC202", f"unknown tool `{asked}`", (*path, "tool"), help=help)
    declared.called.add(asked)
    expected = None if tool is None else tool.inputs
    what = f"tool `{asked}`"
    inputs = bind_inputs(raw["in"], expected, what=what, step=name, path=path, scope=scope, findings=findings)
    if tool is None or inputs is None:
        return None
    return UseTool(name=name, tool=asked, inputs=inputs, outputs=tool.outputs, span=findings.spec.span(path))


def _lower_repeat(name: str, raw: Mapping[str, Any], path: SpecPath, scope: Scope, declared: Declared) -> Repeat | None:
    findings, inside = declared.findings, scope.children[name]
    body, parts = _lower_body(raw, path, inside, lambda: lower_loop_parts(name, raw, path, inside, findings), declared)
    outputs = fields_of(scope.steps[name])
    if parts is None or body is None or outputs is None:
        return None
    return Repeat(
        name=name,
        times=raw["repeat"],
        carry=parts.carry,
        body=body,
        out=parts.out,
        outputs=outputs,
        until=parts.until,
        span=findings.spec.span(path),
    )
