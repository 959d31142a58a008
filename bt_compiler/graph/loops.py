"""What `repeat` has beside its steps: `carry`, `until` and `out`, and the types that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bt_compiler.graph.bindings import bind_outputs, reference_or_constant
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.inference import Rule, Source, given, inferred, lists_alone
from bt_compiler.graph.program import Binding, Carry, Ref
from bt_compiler.graph.scope import Scope, Typed, is_reference, resolve
from bt_compiler.spec import Type, assignable, show_type


class LoopParts(NamedTuple):
    """The parts of a loop around its body."""

    carry: tuple[Carry, ...]
    out: tuple[Binding, ...]
    until: Ref | None


def declare_loop(raw: Mapping[str, Any], inside: Scope, rules: list[Rule]) -> Mapping[str, Typed]:
    """Enters the carried names into the loop's scope; what the loop gives outside."""
    for name, node in raw.get("carry", {}).items():
        inside.values[name] = _carried(node, inside, rules)
    return {name: inside.values[name] for name in raw.get("carry", {})} | given(raw.get("out", {}), inside, rules)


def _carried(node: Mapping[str, Any], inside: Scope, rules: list[Rule]) -> Typed:
    outside = inside.parent
    assert outside is not None
    if "add" in node:
        return inferred(rules, [Source(node["add"], inside)], shape=lists_alone)
    # a constant says nothing: it is converted to what the other says
    sources = [Source(node["start"], outside), Source(node["next"], inside)]
    says = [source for source in sources if is_reference(source.node)]
    return inferred(rules, says[:1], later=says[1:])


def lower_loop_parts(
    name: str, raw: Mapping[str, Any], path: SpecPath, inside: Scope, findings: Findings
) -> LoopParts | None:
    """`carry`, `out` and `until` of loop `name`, or None after findings."""
    carry = [
        _lower_carry(carried, node, name, (*path, "carry", carried), inside, findings)
        for carried, node in raw.get("carry", {}).items()
    ]
    out = bind_outputs(raw.get("out", {}), path=(*path, "out"), scope=inside, findings=findings)
    until = None
    if "until" in raw:
        until = _lower_until(raw["until"], (*path, "until"), inside, findings)
    clashes = [carried for carried in raw.get("carry", {}) if carried in raw.get("out", {})]
    for clash in clashes:
        findings.add(
            "BTC222",
            f"`{name}` gives `{clash}` twice: by `carry` and by `out`",
            (*path, "out", clash),
            key=True,
            help="what is carried is given already; take another name in `out`",
        )
    if out is None or clashes or any(item is None for item in carry) or (until is None and "until" in raw):
        return None
    return LoopParts(tuple(item for item in carry if item is not None), out, until)


def _lower_carry(
    name: str, node: Mapping[str, Any], loop: str, path: SpecPath, inside: Scope, findings: Findings
) -> Carry | None:
    type, hidden = inside.values[name].type, inside.values[name].hidden
    if type is None and not (hidden and "add" in node):
        _report_unknown(name, node, hidden, path, inside, findings)
        return None
    if type is None or "add" in node:
        return _lower_add(name, node["add"], type, (*path, "add"), inside, findings)
    what = f"carried `{name}`"
    outside = inside.parent
    assert outside is not None
    start = reference_or_constant(
        node["start"], type, what=what, step=loop, path=(*path, "start"), scope=outside, findings=findings
    )
    value = reference_or_constant(
        node["next"], type, what=what, step=None, path=(*path, "next"), scope=inside, findings=findings
    )
    if start is None or value is None:
        return None
    return Carry(name=name, type=type, mode="replace", value=value, start=start)


def _report_unknown(
    name: str, node: Mapping[str, Any], hidden: bool, path: SpecPath, inside: Scope, findings: Findings
) -> None:
    """Says why a type is not known: mostly, resolving what it should follow from does."""
    found = [
        resolve(node[key], scope, inside.owner if key == "start" else None, (*path, key), findings)
        for key, scope in (("start", inside.parent), ("next", inside), ("add", inside))
        if is_reference(node.get(key)) and scope is not None
    ]
    if not found:
        findings.add(
            "BTC214", "a carried value needs a reference in `start` or `next`", path, help="write `$step.field`"
        )
    elif None not in found and not hidden:
        findings.add(
            "BTC214",
            f"the type of carried `{name}` follows from nothing but itself",
            path,
            help="`add`, `start` or `next` has to take the output of a step, or an input",
        )


def _lower_add(
    name: str, node: Any, type: Type | None, path: SpecPath, inside: Scope, findings: Findings
) -> Carry | None:
    if not is_reference(node):
        findings.add("BTC216", f"`add` takes a reference, got `{node}`", path, help="write `$step.field`")
        return None
    found = resolve(node, inside, None, path, findings)
    if found is None or found.type is None:
        return None
    if type is None or not assignable(found.type, type):
        findings.add(
            "BTC214",
            f"`add` of carried `{name}` needs a list, got `{show_type(found.type)}`",
            path,
            help="a single value is replaced on each visit by `{start: …, next: …}`",
        )
        return None
    return Carry(name=name, type=type, mode="add", value=found.ref)


def _lower_until(node: Any, path: SpecPath, inside: Scope, findings: Findings) -> Ref | None:
    if not is_reference(node):
        findings.add("BTC216", f"`until` takes a reference, got `{node}`", path, help="write `$step.field`")
        return None
    found = resolve(node, inside, None, path, findings)
    if found is None or found.type is None:
        return None
    if found.type.kind != "bool":
        findings.add(
            "BTC215",
            f"`until` needs a `bool`, got `{show_type(found.type)}`",
            path,
            help="let a module of the loop give an output of type `bool`",
        )
        return None
    return found.ref
