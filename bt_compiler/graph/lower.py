"""From the validated spec to a typed program, with every finding of names, types and references at once.

Knows the document only through `Spec.get` and `Spec.span`, and settings only through `Sections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.graph.bindings import bind_outputs
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.hashing import hashed
from bt_compiler.graph.inference import settle
from bt_compiler.graph.judges import Judges, lower_judges, modules_known
from bt_compiler.graph.program import (
    Binding,
    Call,
    Module,
    Node,
    Program,
    Ref,
    Rerank,
    Retrieve,
    RetrieverRef,
    ToolRef,
    UseTool,
)
from bt_compiler.graph.scope import Scope, Typed
from bt_compiler.graph.signatures import lower_fields, lower_modules
from bt_compiler.graph.steps import Declared, declare_steps, lower_steps, ordered
from bt_compiler.graph.verify import verify
from bt_compiler.graph.walk import nodes_of, references
from bt_compiler.spec import Field, Sections, Spec, Type, named_types
from bt_compiler.spec.judging import judging_modules
from bt_compiler.spec.sections import MetricSection


class Lowered(NamedTuple):
    """A program and what is odd about it without being wrong."""

    program: Program
    warnings: tuple[Diagnostic, ...]
    judges: Judges
    """Of the spec's metrics, by `judge_key`."""


class _Structure(NamedTuple):
    inputs: tuple[Field, ...]
    nodes: tuple[Node, ...]
    out: tuple[Binding, ...]


def lower(spec: Spec, sections: Sections) -> Program:
    """The typed program of a spec. Raises SpecError with every finding (BTC2xx)."""
    return lower_with_warnings(spec, sections).program


def lower_with_warnings(spec: Spec, sections: Sections) -> Lowered:
    """As `lower`, with the warnings beside the program."""
    findings = Findings(spec)
    named = named_types(spec)
    modules = lower_modules(named, findings, sections)
    judging = judging_modules(spec)
    declared = Declared(
        modules=modules,
        retrievers={item.name: item for item in sections.retrievers},
        tools={item.name: item for item in sections.tools},
        findings=findings,
    )
    known = modules_known(sections, modules, findings)
    if spec.get(("program",)) is None:
        own = {name: made for name, made in modules.items() if name not in judging} or modules
        structure = _single_module(own, declared) if known else None  # else it may be the judge that has no metric
    else:
        structure = _written_program(spec.get(("program",)), named, declared)
    judges: Judges = {}
    if structure is not None:
        _check_names_in_settings(structure, sections, findings)
        judges = lower_judges(
            sections, modules, declared.called, inputs=structure.inputs, out=structure.out, findings=findings
        )
    findings.raise_errors()
    assert structure is not None, "no structure without a finding"
    _warn_unused(structure, declared, judging)
    program = hashed(_assemble(sections.name, structure, declared))
    verify(program)
    return Lowered(program, tuple(findings.sorted()), judges)


def _single_module(modules: Mapping[str, Module | None], declared: Declared) -> _Structure | None:
    if len(modules) != 1:
        names = ", ".join(f"`{name}`" for name in modules)
        declared.findings.add(
            "BTC218",
            f"the modules {names} need a `program` that says how they are connected",
            ("modules",),
            key=True,
            help="only a single module is a program by itself; write `program: {inputs, steps, out}`",
        )
        return None
    ((name, module),) = modules.items()
    if module is None:
        return None
    declared.called.add(name)
    inputs = tuple(
        Binding(name=item.name, value=Ref(step=None, field=item.name), type=item.type)
        for item in module.signature.inputs
    )
    span = declared.findings.spec.span(("modules", name))
    call = Call(name=name, module=name, inputs=inputs, outputs=module.gives, span=span)
    out = tuple(
        Binding(name=item.name, value=Ref(step=name, field=item.name), type=item.type)
        for item in (*module.signature.outputs, *module.signature.confidences)
    )
    return _Structure(module.signature.inputs, (call,), out)


def _written_program(raw: Mapping[str, Any], named: Mapping[str, Type], declared: Declared) -> _Structure | None:
    findings = declared.findings
    path: SpecPath = ("program",)
    inputs = lower_fields(raw["inputs"], (*path, "inputs"), named, findings)
    known = {item.name: item.type for item in inputs or ()}
    scope = Scope()
    for name in raw["inputs"]:
        scope.values[name] = Typed(type=known.get(name), hidden=name not in known)
    steps_path: SpecPath = (*path, "steps")
    declare_steps(raw["steps"], steps_path, scope, declared)
    settle(declared.rules)
    lowered = lower_steps(raw["steps"], steps_path, scope, declared)
    out = bind_outputs(raw["out"], path=(*path, "out"), scope=scope, findings=findings)
    nodes = ordered(lowered, steps_path, scope, findings)
    return None if inputs is None or out is None or nodes is None else _Structure(inputs, nodes, out)


def _check_names_in_settings(structure: _Structure, sections: Sections, findings: Findings) -> None:
    names = [item.name for item in structure.out]
    given = {item.name for item in structure.inputs} - {item.name for item in sections.data.labels}
    metrics: list[tuple[MetricSection, SpecPath]] = [(sections.metric, ("metric",))]
    if sections.optimize.accept.metric is not None:
        metrics.append((sections.optimize.accept.metric, ("optimize", "accept", "metric")))
    while metrics:
        metric, place = metrics.pop(0)
        metrics += [(part, (*place, "parts", number)) for number, part in enumerate(metric.parts)]
        path = (*place, "output")
        if metric.output and not metric.parts and metric.output not in names:
            findings.add(
                "BTC209",
                f"the metric judges `{metric.output}`, which the program never produces",
                path,
                help=did_you_mean(metric.output, names, what="the program gives"),
            )
        if not metric.parts and metric.label in given:
            findings.add(
                "BTC256",
                f"the metric compares with label `{metric.label}`, which is an input that the program is given",
                place,
                help="name the column of the right answers, `label: …`; an input that is right itself is declared, "
                f"`data: {{labels: {{{metric.label}: …}}}}`",
            )


def _warn_unused(structure: _Structure, declared: Declared, judging: frozenset[str]) -> None:
    findings = declared.findings
    combined = {name for section in declared.retrievers.values() for name in section.of}
    called = [module for name in declared.called if (module := declared.modules.get(name)) is not None]
    used = declared.called | judging | {tool.name for module in called for tool in module.tools}
    for section, what in (("modules", "module"), ("retrievers", "retriever"), ("tools", "tool")):
        for name in findings.spec.get((section,), {}):
            if name not in used and not (section == "retrievers" and name in combined):
                findings.add(
                    "BTC207",
                    f"{what} `{name}` is used by no step",
                    (section, name),
                    key=True,
                    help="leave it out, or name it in a step",
                    severity="warning",
                )
    read = {ref.field for ref in references(structure.nodes, structure.out) if ref.step is None}
    for item in structure.inputs:
        if item.name not in read:
            findings.add(
                "BTC207",
                f"program input `{item.name}` is used by no step",
                ("program", "inputs", item.name),
                key=True,
                help="leave it out, or refer to it in a step",
                severity="warning",
            )


def _assemble(name: str, structure: _Structure, declared: Declared) -> Program:
    """Modules, retrievers and tools in the order of their first use, those without use left out."""
    modules: dict[str, Module] = {}
    retrievers: dict[str, RetrieverRef] = {}
    tools: dict[str, ToolRef] = {}
    for _, node in nodes_of(structure.nodes):
        if isinstance(node, Call):
            for slot in node.slots or (node.module,):
                found = declared.modules[slot.partition("#")[0]]
                assert found is not None
                modules.setdefault(slot, replace(found, name=slot))
                for used in found.tools:
                    if used.k is None:
                        tools.setdefault(used.name, replace(used, description=None))
                    else:
                        retrievers.setdefault(used.name, _retriever(declared, used.name))
        elif isinstance(node, Retrieve | Rerank):
            retrievers.setdefault(node.retriever, _retriever(declared, node.retriever))
        elif isinstance(node, UseTool):
            tool = declared.tools[node.tool]
            ref = ToolRef(name=tool.name, kind=tool.kind, inputs=tool.inputs, outputs=tool.outputs)
            tools.setdefault(tool.name, ref)
    return Program(
        name=name,
        inputs=structure.inputs,
        nodes=structure.nodes,
        out=structure.out,
        modules=tuple(modules.values()),
        retrievers=tuple(retrievers.values()),
        tools=tuple(tools.values()),
    )


def _retriever(declared: Declared, name: str) -> RetrieverRef:
    section = declared.retrievers[name]
    return RetrieverRef(name=section.name, kind=section.kind, k=section.k)
