"""Types of names that follow from what other names are: what blocks give, carry and go over.

They may follow from each other in any order, around loops too, so that they are worked out all together, from nothing
up, until nothing changes any more. Notes no findings: lowering meets the same references again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bt_compiler.graph.scope import Outputs, Resolved, Scope, Typed, is_reference, look_up
from bt_compiler.spec import Field, Type, assignable


class Source(NamedTuple):
    """A value as written, and where it stands."""

    node: Any
    scope: Scope


def _same(type: Type) -> Type:
    return type


class Rule(NamedTuple):
    """Of a name: what its type follows from."""

    typed: Typed
    sources: Sequence[Source]
    """Its type is the widest of theirs; one that is no reference has a finding of its own."""
    later: Sequence[Source] = ()
    """Have a say only once the `sources` of all rules have had theirs."""
    shape: Callable[[Type], Type | None] = _same
    """From the type of a source; None where the source does not fit, which is another finding."""


def settle(rules: Sequence[Rule]) -> None:
    """Gives every name its type: of those whose names are neither known nor hidden then, types follow from nothing
    but themselves.
    """
    for _ in rules:  # enough for references that go backwards all the way; around a loop there may be no end
        if not any([_apply(rule) for rule in rules]):
            break
    while any([_widen(rule) for rule in rules]):
        pass


def _apply(rule: Rule) -> bool:
    """Takes what the sources say now; whether that is news."""
    before = rule.typed.type, rule.typed.hidden
    rule.typed.type = widest(_types(rule, rule.sources))
    return before != (rule.typed.type, rule.typed.hidden)


def _widen(rule: Rule) -> bool:
    """Takes what all sources say now where that is wider, so that there is an end; whether that is news."""
    old, hidden = rule.typed.type, rule.typed.hidden
    new = widest(_types(rule, (*rule.sources, *rule.later)))
    if new is not None and (old is None or (assignable(old, new) and not assignable(new, old))):
        rule.typed.type = new
    return (old, hidden) != (rule.typed.type, rule.typed.hidden)


def _types(rule: Rule, sources: Sequence[Source]) -> list[Type]:
    types = []
    for node, scope in sources:
        found = look_up(node, scope) if is_reference(node) else None
        if not isinstance(found, Resolved):
            rule.typed.hidden = True
            continue
        type = None if found.type is None else rule.shape(found.type)
        if type is not None:
            types.append(type)
        elif found.hidden or found.type is not None:
            rule.typed.hidden = True
    return types


def widest(types: Sequence[Type]) -> Type | None:
    """The first that takes all the others; the first of all where none does, None where there is none."""
    return next((wide for wide in types if all(assignable(each, wide) for each in types)), types[0] if types else None)


def given(
    out: Mapping[str, Any], scope: Scope, rules: list[Rule], shape: Callable[[Type], Type] = _same
) -> dict[str, Typed]:
    """What `out` of a block with inside `scope` gives, with its `rules` noted."""
    return {name: inferred(rules, [Source(node, scope)], shape=shape) for name, node in out.items()}


def inferred(
    rules: list[Rule],
    sources: Sequence[Source],
    later: Sequence[Source] = (),
    shape: Callable[[Type], Type | None] = _same,
) -> Typed:
    """A type that is known once the `rules`, to which this adds its own, are settled."""
    typed = Typed(hidden=not sources)
    rules.append(Rule(typed, sources, later, shape))
    return typed


def lists_alone(type: Type) -> Type | None:
    """The type, where it is that of a list."""
    return type if type.kind == "list" else None


def item_of(type: Type) -> Type | None:
    """Of a list, the type of its elements."""
    return type.item if type.kind == "list" else None


def fields_of(outputs: Outputs) -> tuple[Field, ...] | None:
    """The outputs of a step once settled; None where not all of their types are known."""
    if outputs is None:
        return None
    fields = [Field(name=name, type=typed.type) for name, typed in outputs.items() if typed.type is not None]
    return tuple(fields) if len(fields) == len(outputs) else None
