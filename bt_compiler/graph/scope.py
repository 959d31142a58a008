"""What a name means where it stands: program inputs, carried values, steps of the own body and of enclosing ones.

Resolves one reference to a `Ref` and its type, or says why it cannot. Knows nothing of modules, and writes
diagnostics only through `Findings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import Ref
from bt_compiler.spec import Field, Type, assignable, show_type

_NAME = r"(?![0-9])[^\x00-/:-@\[-^`{-\xa0\s]+"  # as the schema has it
_REFERENCE = re.compile(rf"\$(?P<head>{_NAME})(?:\.(?P<field>{_NAME}))?\Z")


@dataclass(slots=True, eq=False)
class Typed:
    """The type of a name, which may have to follow from other names first (`inference`)."""

    type: Type | None = None
    hidden: bool = False
    """Whether another finding hides it, or may hide it."""


Outputs = Mapping[str, Typed] | None
"""Of a step, by name. None: not known, because of another finding."""


def typed(fields: Iterable[Field]) -> Mapping[str, Typed]:
    """Outputs whose types are known."""
    return {item.name: Typed(type=item.type) for item in fields}


class Resolved(NamedTuple):
    """A reference that means something; `type` is None where it is not known."""

    ref: Ref
    type: Type | None
    hidden: bool
    """Whether it is another finding that hides the type."""


class Problem(NamedTuple):
    """Why a reference means nothing."""

    code: str
    message: str
    help: str | Callable[[], str] | None


@dataclass(slots=True)
class Scope:
    """The names of one body: the top of the program, or the inside of a block."""

    owner: str | None = None
    """The block whose inside this is; None at the top."""
    kind: str = "loop"
    """What that block is called in messages: `loop`, `switch`, `map` or `sample`."""
    times: int = 0
    """Of a loop, its visits."""
    parent: Scope | None = None
    values: dict[str, Typed] = field(default_factory=dict)
    """Program inputs at the top, carried names in a loop, the element in a map."""
    steps: dict[str, Outputs] = field(default_factory=dict)
    """Outputs of the steps of this body."""
    children: dict[str, Scope] = field(default_factory=dict)
    """Insides of the blocks of this body: by name, of a switch by `name/case`."""
    needs: dict[str, set[str]] = field(default_factory=dict)
    """step -> steps of this body that it, or anything inside it, refers to."""
    used: set[str] = field(default_factory=set)
    """Steps of this body that something refers to."""

    def outward(self) -> Iterator[Scope]:
        """From here to the top, this scope first."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def inward(self) -> Iterator[Scope]:
        """The scopes inside this one, at any depth."""
        for child in self.children.values():
            yield child
            yield from child.inward()

    def visible_steps(self) -> list[str]:
        """Names of steps that can be referred to from here."""
        return [name for scope in self.outward() for name in scope.steps]

    def visible_values(self) -> list[str]:
        """Names of inputs and carried values that can be referred to from here."""
        return [name for scope in self.outward() for name in scope.values]


def is_reference(raw: object) -> bool:
    """Whether a value of the spec is meant as a reference: a string that starts with one dollar."""
    return isinstance(raw, str) and raw.startswith("$") and not raw.startswith("$$")


def resolve(text: str, scope: Scope, step: str | None, path: SpecPath, findings: Findings) -> Resolved | None:
    """The meaning of `text` in `scope` within `step` (None: the body's own `out` and `carry`), noted as a need of
    that step; None after a finding at `path`.
    """
    found = look_up(text, scope)
    if isinstance(found, Problem):
        findings.add(found.code, found.message, path, help=found.help)
        return None
    if found.ref.step is None:
        return found
    name, dependent = found.ref.step, step
    for place in scope.outward():
        if name in place.steps:
            place.used.add(name)
            if dependent == name:
                _add_self_reference(found.ref, place, path, findings)
                return None
            if dependent is not None:
                place.needs.setdefault(dependent, set()).add(name)
            break
        dependent = place.owner
    return found


def _add_self_reference(ref: Ref, place: Scope, path: SpecPath, findings: Findings) -> None:
    inside = place.children.get(ref.step or "")
    carried = inside is not None and ref.field in inside.values
    help = f"write `${ref.field}`: inside its loop a carried value goes by its own name" if carried else None
    findings.add("BTC212", f"step `{ref.step}` refers to its own output `{ref.field}`", path, help=help)


def look_up(text: str, scope: Scope) -> Resolved | Problem:
    """What `text` means in `scope`; notes nothing."""
    match = _REFERENCE.match(text)
    if match is None:
        return Problem(
            "BTC216",
            f"`{text}` is not a reference",
            "a reference is `$step.field`, `$input` or a carried name, nothing more; "
            f"write `$${text[1:]}` for text that starts with a dollar",
        )
    head, attribute = match["head"], match["field"]
    if head == "labels" and head not in scope.steps:
        return Problem(
            "BTC211",
            "`$labels` is not visible in the program",
            "labels exist in `metric` alone: the program has to work without them",
        )
    return _look_up_value(head, scope) if attribute is None else _look_up_output(head, attribute, scope)


def _look_up_value(head: str, scope: Scope) -> Resolved | Problem:
    for place in scope.outward():
        if head in place.values:
            found = place.values[head]
            return Resolved(Ref(step=None, field=head), found.type, found.hidden)
    for place in scope.outward():
        if head in place.steps:
            shown = ", ".join(f"`${head}.{name}`" for name in place.steps[head] or ())
            return Problem("BTC216", f"`${head}` is a step, not a value", f"write {shown}" if shown else None)
    return _outside(f"${head}", head, None, scope) or Problem(
        "BTC200",
        f"unknown name `${head}`",
        partial(did_you_mean, head, [*scope.visible_values(), *scope.visible_steps()], what="visible here"),
    )


def _look_up_output(head: str, attribute: str, scope: Scope) -> Resolved | Problem:
    for place in scope.outward():
        if head in place.steps:
            return _output_of(head, attribute, place.steps[head])
    if head in scope.visible_values():
        return Problem(
            "BTC216",
            f"`{head}` is a value, not a step: `${head}.{attribute}` means nothing",
            f"write `${head}`; a reference takes whole values",
        )
    return _outside(f"${head}.{attribute}", head, attribute, scope) or Problem(
        "BTC200",
        f"unknown step `{head}` in `${head}.{attribute}`",
        partial(did_you_mean, head, [*scope.visible_steps(), *scope.visible_values()], what="visible here"),
    )


def _output_of(head: str, attribute: str, outputs: Outputs) -> Resolved | Problem:
    ref = Ref(step=head, field=attribute)
    if outputs is None:
        return Resolved(ref, None, True)
    if attribute in outputs:
        return Resolved(ref, outputs[attribute].type, outputs[attribute].hidden)
    return Problem(
        "BTC201",
        f"step `{head}` gives no `{attribute}`",
        partial(did_you_mean, attribute, outputs, what=f"`{head}` gives"),
    )


def _outside(text: str, head: str, attribute: str | None, scope: Scope) -> Problem | None:
    """A name that exists, but inside a block that the reference stands outside of."""
    for place in scope.outward():
        for inner in place.inward():
            if head in (inner.values if attribute is None else inner.steps):
                help = _way_out(text, head, attribute, inner)
                return Problem("BTC210", f"`{text}` is used outside its {inner.kind} `{inner.owner}`", help)
    return None


def _way_out(text: str, head: str, attribute: str | None, inner: Scope) -> str:
    owner = inner.owner
    if attribute is None:
        if inner.kind == "loop":
            return f"write `${owner}.{head}`: `{owner}` gives what it carries"
        return f"the element is known inside alone; `{owner}` gives lists of what its `out` binds"
    ways = {"loop": f"or `carry` of `{owner}`", "switch": f"in every case of `{owner}`"}
    return f"give it by `out: {{{attribute}: {text}}}` {ways.get(inner.kind, f'of `{owner}`')} " + (
        f"and refer to `${owner}.{attribute}`"
    )


def also_gives(ref: Ref, scope: Scope, wanted: Type) -> str | None:
    """Help for a value of the wrong type: what the same step gives that would fit."""
    if ref.step is None:
        return None
    for place in scope.outward():
        if ref.step in place.steps:
            fitting = [
                f"`{name}: {show_type(typed.type)}`"
                for name, typed in (place.steps[ref.step] or {}).items()
                if name != ref.field and typed.type is not None and assignable(typed.type, wanted)
            ]
            return f"`{ref.step}` also gives {', '.join(fitting)}" if fitting else None
    return None


def order(steps: Mapping[str, object], needs: Mapping[str, set[str]]) -> tuple[list[str], list[list[str]]]:
    """The steps so that each follows what it needs, by name where that leaves a choice; and the cycles, each from its
    least name on. Steps in or behind a cycle are missing from the order.
    """
    left = {name: set(needs.get(name, ())) for name in sorted(steps)}
    ordered: list[str] = []
    while ready := next((name for name in left if not left[name]), None):
        ordered.append(ready)
        del left[ready]
        for waiting in left.values():
            waiting.discard(ready)
    cycles: list[list[str]] = []
    seen: set[str] = set()
    for start in left:
        trail: list[str] = []
        name = start
        while name not in seen and name not in trail:
            trail.append(name)
            name = min(left[name])
        if name in trail:
            cycle = trail[trail.index(name) :]
            first = cycle.index(min(cycle))
            cycles.append(cycle[first:] + cycle[:first])
        seen.update(trail)
    return ordered, cycles
