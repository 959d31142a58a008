"""What `repeat` has beside its steps: `carry`, `until` and `out`, and the types that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from bt_compiler.graph.bindings import bind_outputs, reference_or_constant
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import Binding, Carry, Ref
from bt_compiler.graph.scope import Outputs, Resolved, Scope, is_reference, look_up, resolve
from bt_compiler.spec import Field, Type, assignable, show_type

T = TypeVar("T")


class LoopParts(NamedTuple):
    """The parts of a loop around its body."""

    carry: tuple[Carry, ...]
    out: tuple[Binding, ...]
    until: Ref | None


class Once(Generic[T]):
    """A value that is worked out when first asked for; None also where it follows from nothing but itself."""

    __slots__ = ("_done", "_found", "_make", "_running", "circular")

    def __init__(self, make: Callable[[], T | None]) -> None:
        self._make = make
        self._running = False
        self._done = False
        self._found: T | None = None
        self.circular = False

    def __call__(self) -> T | None:
        """The value."""
        if self._running:
            self.circular = True
            return None
        if not self._done:
            self._running = True
            self._found = self._make()
            self._running = False
            self._done = True
        return self._found


def type_of(node: Any, scope: Scope) -> Type | None:
    """The type of a reference in `scope`; None where another finding hides it. Notes nothing."""
    found = look_up(node, scope) if is_reference(node) else None
    return found.type if isinstance(found, Resolved) else None


def declare_loop(raw: Mapping[str, Any], inside: Scope) -> Callable[[], Outputs]:
    """Enters the carried names into the loop's scope and gives what the loop gives outside."""
    carry: Mapping[str, Any] = raw.get("carry", {})
    out: Mapping[str, Any] = raw.get("out", {})
    for name, node in carry.items():
        inside.values[name] = Once(_carried(node, inside))

    def outputs() -> Outputs:
        types = {name: inside.values[name]() for name in carry} | {
            name: type_of(node, inside) for name, node in out.items()
        }
        fields = tuple(Field(name=name, type=type) for name, type in types.items() if type is not None)
        return fields if len(fields) == len(types) else None

    return Once(outputs)


def _carried(node: Mapping[str, Any], inside: Scope) -> Callable[[], Type | None]:
    outside = inside.parent
    assert outside is not None

    def carried() -> Type | None:
        if "add" in node:
            found = type_of(node["add"], inside)
            return found if found is not None and found.kind == "list" else None
        start = node.get("start")
        return type_of(start, outside) if is_reference(start) else type_of(node.get("next"), inside)

    return carried


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
    type = inside.values[name]()
    if getattr(inside.values[name], "circular", False):
        findings.add(
            "BTC214",
            f"the type of carried `{name}` follows from nothing but itself",
            path,
            help="add or start from the output of a step or an input",
        )
        return None
    if "add" in node:
        return _lower_add(name, node["add"], type, (*path, "add"), inside, findings)
    what = f"carried `{name}`"
    if type is None:  # the cause lies in `start` or `next`: resolving them says which
        _report_only(node, path, inside, findings)
        return None
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


def _report_only(node: Mapping[str, Any], path: SpecPath, inside: Scope, findings: Findings) -> None:
    for key, scope in (("start", inside.parent), ("next", inside)):
        if is_reference(node.get(key)) and scope is not None:
            resolve(node[key], scope, inside.owner if key == "start" else None, (*path, key), findings)
    if not is_reference(node.get("start")) and not is_reference(node.get("next")):
        findings.add(
            "BTC214", "a carried value needs a reference in `start` or `next`", path, help="write `$step.field`"
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
