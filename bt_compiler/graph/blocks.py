"""What `switch`, `map` and `sample` are beside their steps, and the types of what they give.

Lowering a body is handed in, for a body may hold any step. Knows nothing of modules, retrievers or tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.bindings import bind_outputs
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.inference import Rule, Source, fields_of, given, inferred, item_of
from bt_compiler.graph.program import Binding, Case, Map, Node, Ref, Sample, Switch
from bt_compiler.graph.scope import Resolved, Scope, Typed, is_reference, resolve
from bt_compiler.spec import Field, Type, assignable, show_type

T = TypeVar("T")
_BOOLS = {"true": True, "false": False}
_SHOWN = 8


class Lowered(NamedTuple, Generic[T]):
    """A body, None after findings, and what came of the block's other keys."""

    body: tuple[Node, ...] | None
    parts: T


class LowerBody(Protocol):
    """Lowers the steps in `inner` at `at` within `inside`; `parts` resolves what the block itself takes from them."""

    def __call__(self, inner: Mapping[str, Any], at: SpecPath, inside: Scope, parts: Callable[[], T], /) -> Lowered[T]:
        """The body, and what `parts` gave."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A step with bodies, as written, and where it stands."""

    name: str
    raw: Mapping[str, Any]
    path: SpecPath
    scope: Scope
    findings: Findings
    lower_body: LowerBody


def insides(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, SpecPath, Mapping[str, Any]]]:
    """The bodies of a step as written: (key in `Scope.children` after its name, kind, path in the step, body)."""
    if "repeat" in raw:
        yield "", "loop", (), raw
    elif "map" in raw:
        yield "", "map", (), raw
    elif "sample" in raw:
        yield "", "sample", (), raw
    elif "switch" in raw:
        for value, case in raw["cases"].items():
            yield f"={value}", "switch", ("cases", value), case
        if "else" in raw:
            yield "else", "switch", ("else",), raw["else"]


def declare_map(raw: Mapping[str, Any], inside: Scope, rules: list[Rule]) -> Mapping[str, Typed]:
    """Enters the element into the map's scope; what the map gives outside: lists."""
    outside = inside.parent
    assert outside is not None
    inside.values[raw["as"]] = inferred(rules, [Source(raw["map"], outside)], shape=item_of)
    return given(raw["out"], inside, rules, shape=lambda type: Type(kind="list", item=type))


def declare_sample(raw: Mapping[str, Any], inside: Scope, rules: list[Rule]) -> Mapping[str, Typed]:
    """What the step gives outside."""
    return given(raw["out"], inside, rules)


def declare_switch(name: str, raw: Mapping[str, Any], scope: Scope, rules: list[Rule]) -> Mapping[str, Typed]:
    """What the step gives outside: the names of the first case, each with the widest of its types in all cases."""
    cases = [(case["out"], scope.children[f"{name}/{key}"]) for key, _, _, case in insides(raw)]
    return {
        output: inferred(rules, [Source(out[output], inside) for out, inside in cases if output in out])
        for output in cases[0][0]
    }


def _reference(step: Block, node: Any, at: SpecPath, scope: Scope, owner: str | None, what: str) -> Resolved | None:
    """A reference of known type in `scope`; None after findings."""
    if not is_reference(node):
        step.findings.add("BTC216", f"{what} takes a reference, got `{node}`", at, help="write `$step.field`")
        return None
    found = resolve(node, scope, owner, at, step.findings)
    return None if found is None or found.type is None else found


def lower_map(step: Block) -> Map | None:
    """The node; None after findings."""
    raw, path, inside = step.raw, step.path, step.scope.children[step.name]
    over = _reference(step, raw["map"], (*path, "map"), step.scope, step.name, "`map`")
    if over is not None and over.type is not None and over.type.kind != "list":
        step.findings.add(
            "BTC232",
            f"`map` goes over a list, got `{show_type(over.type)}`",
            (*path, "map"),
            help="name an input or output whose type is a list, such as `[str]`",
        )
        over = None
    body, out = step.lower_body(raw, path, inside, lambda: _out(step, raw, path, inside))
    outputs = fields_of(step.scope.steps[step.name])
    if over is None or over.type is None or over.type.item is None or body is None or out is None or outputs is None:
        return None
    return Map(
        name=step.name,
        over=over.ref,
        item=raw["as"],
        item_type=over.type.item,
        at_most=raw["at_most"],
        body=body,
        out=out,
        outputs=outputs,
        span=step.findings.spec.span(path),
    )


def _out(step: Block, raw: Mapping[str, Any], path: SpecPath, inside: Scope) -> tuple[Binding, ...] | None:
    return bind_outputs(raw["out"], path=(*path, "out"), scope=inside, findings=step.findings)


def lower_sample(step: Block) -> Sample | None:
    """The node; None after findings."""
    raw, path, inside = step.raw, step.path, step.scope.children[step.name]
    by = raw["pick"]["best"] if isinstance(raw["pick"], Mapping) else None

    def parts() -> tuple[tuple[Binding, ...] | None, Ref | None]:
        best = None if by is None else _best(step, by, (*path, "pick", "best"), inside)
        return _out(step, raw, path, inside), best

    body, (out, best) = step.lower_body(raw, path, inside, parts)
    outputs = fields_of(step.scope.steps[step.name])
    if body is None or out is None or outputs is None or (best is None and by is not None):
        return None
    return Sample(
        name=step.name,
        times=raw["sample"],
        temperature=float(raw["temperature"]),
        best=best,
        body=body,
        out=out,
        outputs=outputs,
        span=step.findings.spec.span(path),
    )


def _best(step: Block, node: Any, at: SpecPath, inside: Scope) -> Ref | None:
    found = _reference(step, node, at, inside, None, "`best`")
    if found is None or found.type is None:
        return None
    if found.type.kind not in ("int", "float", "bool"):
        step.findings.add(
            "BTC233",
            f"`best` needs a number or a `bool`, got `{show_type(found.type)}`",
            at,
            help="let a module inside judge the result by an output of type `int`, `float` or `bool`",
        )
        return None
    return found.ref


def lower_switch(step: Block) -> Switch | None:
    """The node; None after findings."""
    raw, path = step.raw, step.path
    value = _reference(step, raw["switch"], (*path, "switch"), step.scope, step.name, "`switch`")
    values = None if value is None or value.type is None else _values(step, value.type)
    complete = values is not None and _exhaustive(step, values)
    same = _same_outputs(step)
    outputs = fields_of(step.scope.steps[step.name])
    cases: list[Case | None] = []
    for key, _, at, inner in insides(raw):
        place = (*path, *at)
        inside = step.scope.children[f"{step.name}/{key}"]
        body, out = _lower_case(step, inner, place, inside)
        if body is None or out is None or outputs is None or not _fitting(step, out, outputs, place):
            cases.append(None)
            continue
        text = key.removeprefix("=")
        named: str | bool | None = None if key == "else" else text
        if values is not None and value is not None and value.type is not None and value.type.kind == "bool":
            named = None if key == "else" else _BOOLS.get(text, text)
        by_name = {item.name: item for item in out}
        cases.append(Case(value=named, body=body, out=tuple(by_name[item.name] for item in outputs)))
    if value is None or not complete or not same or outputs is None or any(case is None for case in cases):
        return None
    return Switch(
        name=step.name,
        value=value.ref,
        cases=tuple(case for case in cases if case is not None),
        outputs=outputs,
        span=step.findings.spec.span(path),
    )


def _lower_case(
    step: Block, inner: Mapping[str, Any], place: SpecPath, inside: Scope
) -> Lowered[tuple[Binding, ...] | None]:
    return step.lower_body(inner, place, inside, lambda: _out(step, inner, place, inside))


def _values(step: Block, type: Type) -> tuple[str, ...] | None:
    """The texts of all values that the switch may meet."""
    if type.kind in ("bool", "enum"):
        return tuple(_BOOLS) if type.kind == "bool" else type.values
    step.findings.add(
        "BTC228",
        f"`switch` needs an enum or a `bool`, got `{show_type(type)}`",
        (*step.path, "switch"),
        help="give the output the type `{enum: [a, b]}`: then every value it can have is known",
    )
    return None


def _exhaustive(step: Block, values: tuple[str, ...]) -> bool:
    """Whether the cases are of the switch's values and all there."""
    named, path = step.raw["cases"], step.path
    unknown = [value for value in named if value not in values]
    for value in unknown:
        help = did_you_mean(value, values, what="its values")
        text = f"`{step.raw['switch']}` is never `{value}`"
        step.findings.add("BTC229", text, (*path, "cases", value), key=True, help=help)
    missing = [value for value in values if value not in named]
    if missing and "else" not in step.raw and not unknown:
        shown = ", ".join(f"`{value}`" for value in missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        step.findings.add(
            "BTC230",
            f"`switch` has no case for {shown}",
            (*path, "cases"),
            key=True,
            help="add it, or `else: {steps, out}` for all values without a case",
        )
        return False
    if not missing and "else" in step.raw:
        step.findings.add(
            "BTC207",
            "every value has a case, `else` is never reached",
            (*path, "else"),
            key=True,
            help="leave it out",
            severity="warning",
        )
    return not unknown


def _same_outputs(step: Block) -> bool:
    """Whether every case gives what the first one gives, by name."""
    (_, _, _, first), *others = insides(step.raw)
    same = True
    for _, _, at, case in others:
        lacking = [name for name in first["out"] if name not in case["out"]]
        more = [name for name in case["out"] if name not in first["out"]]
        if lacking or more:
            words = [f"lacks `{name}`" for name in lacking] + [f"has `{name}` besides" for name in more]
            step.findings.add(
                "BTC231",
                f"the cases give different outputs: this one {' and '.join(words)}",
                (*step.path, *at, "out"),
                key=True,
                help="every case gives the same: " + ", ".join(f"`{name}`" for name in first["out"]),
            )
            same = False
    return same


def _fitting(step: Block, out: tuple[Binding, ...], outputs: tuple[Field, ...], place: SpecPath) -> bool:
    """Whether what a case gives has the types of the switch's outputs."""
    types = {item.name: item.type for item in out}
    wrong = [item for item in outputs if item.name in types and not assignable(types[item.name], item.type)]
    for item in wrong:
        step.findings.add(
            "BTC231",
            f"`{item.name}` is `{show_type(types[item.name])}` here and `{show_type(item.type)}` in another case",
            (*place, "out", item.name),
            help="every case gives the same outputs, of one type each",
        )
    return not wrong and all(item.name in types for item in outputs)
