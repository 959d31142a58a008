"""Modules and signatures of the spec, with every type read.

Knows nothing of steps. A module that cannot be lowered is None in the table, so that what calls it is not blamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, cast

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.confidences import check_confidences, check_teacher, tell_apart
from bt_compiler.graph.demos import lower_demo
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import (
    ARGUMENTS,
    OBSERVATION,
    THOUGHT,
    TOOL,
    TRAJECTORY,
    Module,
    ModuleKind,
    Signature,
)
from bt_compiler.graph.react import lower_reach
from bt_compiler.spec import (
    Field,
    Sections,
    Spec,
    Type,
    TypeSyntaxError,
    parse_fields,
    parse_signature_text,
)
from bt_compiler.spec.declared import type_finding
from bt_compiler.spec.judging import judging_modules
from bt_compiler.spec.sections import Generation

KINDS: tuple[ModuleKind, ...] = ("predict", "chain_of_thought", "react")
_ADDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"chain_of_thought": ("reasoning",), "react": (TRAJECTORY, THOUGHT, TOOL, ARGUMENTS, OBSERVATION)}
)
"""By kind, the fields of prompts that are not the signature's."""


def lower_modules(named: Mapping[str, Type], findings: Findings, sections: Sections) -> dict[str, Module | None]:
    """Every entry of `modules` by name, in the spec's order."""
    modules: Mapping[str, Any] = findings.spec.get(("modules",), {})
    lowered = {name: _lower_module(name, raw, named, findings, sections) for name, raw in modules.items()}
    judging = judging_modules(findings.spec)
    check_teacher((module for name, module in lowered.items() if name not in judging), sections, findings)
    return lowered


def _lower_module(
    name: str, raw: Mapping[str, Any], named: Mapping[str, Type], findings: Findings, sections: Sections
) -> Module | None:
    path: SpecPath = ("modules", name)
    kind = raw.get("kind", "predict")
    if kind not in KINDS:
        help = did_you_mean(kind, KINDS, what="kinds")
        findings.add("BTC221", f"unknown kind `{kind}` of module `{name}`", (*path, "kind"), help=help)
        kind = None
    models = {model.name: model for model in sections.models}
    model = models.get(raw.get("model", sections.models[0].name))
    if model is None:
        help = did_you_mean(raw["model"], models, what="models")
        findings.add("BTC202", f"unknown model `{raw['model']}`", (*path, "model"), help=help)
    signature = lower_signature(path, raw.get("signature"), named, findings)
    if signature is not None and not _free_names(path, kind, signature, findings):
        signature = None
    reach = lower_reach(path, raw, kind, findings, sections)
    if signature is None or model is None or reach is None:
        return None
    tools = [
        _among_known(signature.inputs, tool.inputs, (*path, "tools", place), findings)
        for place, tool in enumerate(reach.tools)
    ]
    if not all(tools):
        return None
    check_confidences(name, str(kind), signature.confidences, model, findings)
    module = Module(
        name=name,
        kind=cast(ModuleKind, kind),
        signature=signature,
        model=model.name,
        generation=Generation(**{**asdict(model.generation), **raw.get("generation", {})}),
        format=_format_of(path, findings.spec),
        train=tuple(raw.get("train", ("prompt", "weights"))),
        tools=reach.tools,
        at_most=reach.at_most,
    )
    demos = [lower_demo(module, demo, (*path, "demos", i), findings) for i, demo in enumerate(raw.get("demos", ()))]
    # a demo with a finding leaves the module its types: what calls it is looked at all the same
    return replace(module, demos=tuple(demo for demo in demos if demo is not None))


def _format_of(module: SpecPath, spec: Spec) -> str:
    path: SpecPath = (*module, "format") if spec.get((*module, "format")) is not None else ("format",)
    name = str(spec.get(path, "fields"))
    return spec.file(path) if name.endswith(".jinja") else name


def _free_names(path: SpecPath, kind: str | None, signature: Signature, findings: Findings) -> bool:
    """Whether no field has the name of one that the kind itself adds."""
    outputs = () if kind == "react" else signature.outputs  # there they are arguments of finishing
    names = {item.name for item in (*signature.inputs, *outputs)}
    taken = [name for name in _ADDED.get(kind or "", ()) if name in names]
    for name in taken:
        findings.add(
            "BTC226",
            f"`{name}` is what `{kind}` itself adds to the signature",
            (*path, "signature"),
            help="leave the field out, or give it another name",
        )
    return not taken


def lower_signature(owner: SpecPath, raw: Any, named: Mapping[str, Type], findings: Findings) -> Signature | None:
    """The signature of the module at `owner`: a shared one's name, text with an arrow, or a map."""
    path: SpecPath = (*owner, "signature")
    if isinstance(raw, str) and "->" not in raw:
        shared: Mapping[str, Any] = findings.spec.get(("signatures",), {})
        if raw not in shared:
            help = did_you_mean(raw, shared, what="signatures") if shared else 'write one: `"question -> answer"`'
            findings.add("BTC202", f"unknown signature `{raw}`", path, help=help)
            return None
        raw, path = shared[raw], ("signatures", raw)
    if isinstance(raw, str):
        return _from_text(raw, path, named, findings)
    inputs = lower_fields(raw["inputs"], (*path, "inputs"), named, findings)
    outputs = lower_fields(raw["outputs"], (*path, "outputs"), named, findings)
    if inputs is None or outputs is None:
        return None
    return _signature(raw.get("instructions"), inputs, outputs, path, findings)


def lower_fields(
    raw: Mapping[str, Any], path: SpecPath, named: Mapping[str, Type], findings: Findings
) -> tuple[Field, ...] | None:
    """The fields of a map `name: TYPE`, or None after one finding for each that cannot be read."""
    fields: list[Field] = []
    for name, node in raw.items():
        try:
            fields += parse_fields({name: node}, named)
        except TypeSyntaxError as error:
            findings.items.append(type_finding(findings.spec, path, error))
    return tuple(fields) if len(fields) == len(raw) else None


def _from_text(text: str, path: SpecPath, named: Mapping[str, Type], findings: Findings) -> Signature | None:
    try:
        inputs, outputs = parse_signature_text(text, named)
    except TypeSyntaxError as error:
        findings.add("BTC220", error.message, path, help=error.help)
        return None
    return _signature(None, inputs, outputs, path, findings)


def _signature(
    instructions: str | None, inputs: tuple[Field, ...], outputs: tuple[Field, ...], path: SpecPath, findings: Findings
) -> Signature | None:
    both = {item.name for item in inputs} & {item.name for item in outputs}
    if both:
        shown = ", ".join(f"`{name}`" for name in sorted(both))
        findings.add("BTC220", f"{shown} is both input and output of the signature", path)
        return None
    told = tell_apart(inputs, outputs, path, findings)
    if told is None or not _among_known(inputs, told.written, (*path, "outputs"), findings):
        return None
    return Signature(
        instructions=(instructions or _default_instructions(inputs, told.written)).strip(),
        inputs=inputs,
        outputs=told.written,
        confidences=told.confidences,
    )


def _default_instructions(inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> str:
    given = ", ".join(f"`{item.name}`" for item in inputs)
    wanted = ", ".join(f"`{item.name}`" for item in outputs)
    return f"Given {given}, give {wanted}."


def _among_known(inputs: tuple[Field, ...], outputs: tuple[Field, ...], path: SpecPath, findings: Findings) -> bool:
    """Whether every `among` of the outputs (at `path`), or of the arguments of a tool, names a list of texts among the
    inputs (`tags`, `passages.id`), and stands where it restricts what is written: on a text or a list of texts.
    """
    allowed: set[str] = set()
    for item in inputs:
        element = item.type.item
        if element is not None and element.kind in ("str", "enum"):
            allowed.add(item.name)
        if element is not None and element.kind == "object":
            allowed |= {f"{item.name}.{inner.name}" for inner in element.fields if inner.type.kind in ("str", "enum")}
    known = True
    for item in outputs:
        among, place = item.type.among, (*path, item.name)
        if among is not None and among not in allowed:
            help = did_you_mean(among, allowed, what="lists of texts among the inputs")
            findings.add("BTC224", f"`among: {among}` of `{item.name}` names no list of texts", place, help=help)
            known = False
        for inside in dict.fromkeys(_among_inside(item.type)):
            message = f"`among: {inside}` stands inside the type of `{item.name}`, where it restricts nothing"
            help = "it is for an output that is a text or a list of texts: make what it restricts one of its own"
            findings.add("BTC224", message, place, help=help)
            known = False
    return known


def _among_inside(t: Type) -> Iterator[str]:
    """Every `among` in what a type is made of, not its own."""
    for part in (*((t.item,) if t.item is not None else ()), *(inner.type for inner in t.fields), *t.options):
        if part.among is not None:
            yield part.among
        yield from _among_inside(part)
