"""The spec's own types, read from its `types` section in the order of their references."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import SpecError
from bt_compiler.spec.document import Spec
from bt_compiler.spec.tree import Place, position
from bt_compiler.spec.type_syntax import BUILT_IN, TypeSyntaxError, parse_type
from bt_compiler.spec.types import Type

MAX_PARTS = 2000
"""Most parts a type has when the types it names are written out: prompts, grammars and schemas hold all of them."""
MAX_DEPTH = 24
"""Deepest nesting of a type that is written out."""

MAX_LOOPS = 20
"""Most loops that are reported; types are not read where there are more."""
MAX_FINDINGS = 50

_NAME = re.compile(r"[^\W\d]\w*")
_ENUM = re.compile(r"enum\s*\([^)]*\)")


def named_types(spec: Spec) -> dict[str, Type]:
    """Every entry of `types` by name, in the spec's order. Raises SpecError with every finding (BTC120 to BTC123)."""
    declared: Mapping[str, Any] = spec.get(("types",), {})
    findings = [_built_in(spec, name) for name in declared if name in BUILT_IN]
    needed = {name: {each for each in _references(node) if each in declared} for name, node in declared.items()}
    order, loops = _order(needed)
    findings += [_loop(spec, loop) for loop in loops]
    failed = {name for loop in loops for name in loop}
    types: dict[str, Type] = {}
    for name in order:
        if needed[name] & failed:  # what is wrong with that type is said there
            failed.add(name)
            continue
        try:
            types[name] = _bounded(replace(parse_type(declared[name], types), name=name))
        except TypeSyntaxError as error:
            failed.add(name)
            findings.append(type_finding(spec, ("types", name), error))
    if findings:
        raise SpecError(sorted(findings, key=position)[:MAX_FINDINGS])
    return {name: types[name] for name in declared}


def type_finding(spec: Spec, place: Place, error: TypeSyntaxError) -> Diagnostic:
    """A type that cannot be read, at its place."""
    code = error.code or ("BTC121" if error.unknown else "BTC120")
    return Diagnostic(code=code, message=error.message, help=error.help, span=spec.span((*place, *error.path)))


def _references(node: Any) -> Iterator[str]:
    """Names in the places of a written type where types stand."""
    if isinstance(node, str):
        yield from _NAME.findall(_ENUM.sub("", node))
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, Mapping):
        yield from _references(node.get("type"))
        fields = node.get("fields")
        for item in fields.values() if isinstance(fields, Mapping) else ():
            yield from _references(item)


def _order(needed: Mapping[str, set[str]]) -> tuple[list[str], list[list[str]]]:
    """Names so that each comes after those it needs, and the loops that were cut out to get there."""
    left = {name: sorted(needs) for name, needs in needed.items() if name not in BUILT_IN}
    loops: list[list[str]] = []
    while True:
        sorter = TopologicalSorter({name: [need for need in needs if need in left] for name, needs in left.items()})
        try:
            return list(sorter.static_order()), loops
        except CycleError as error:
            if len(loops) >= MAX_LOOPS:
                return [], loops
            loop = list(reversed(error.args[1][1:]))
            start = min(loop, key=list(needed).index)
            loops.append(loop[loop.index(start) :] + loop[: loop.index(start)])
            left = {name: needs for name, needs in left.items() if name not in loop}


def _loop(spec: Spec, loop: list[str]) -> Diagnostic:
    names = loop if len(loop) <= 6 else [*loop[:5], "…", loop[-1]]
    return Diagnostic(
        code="BTC122",
        message=f"type `{loop[0]}` holds itself: {' -> '.join([*names, loop[0]])}",
        span=spec.span(("types", loop[0]), key=True),
        help="types are written out in full, and this one has no end",
    )


def _built_in(spec: Spec, name: str) -> Diagnostic:
    return Diagnostic(
        code="BTC123",
        message=f"`{name}` is a type that every spec knows",
        span=spec.span(("types", name), key=True),
        help="give yours another name",
    )


def _bounded(t: Type) -> Type:
    """`t` where its parts can be written out; counting stops at the bound, however the types multiply."""
    parts, level = 0, [t]
    for _ in range(MAX_DEPTH):
        parts += len(level)
        if not level:
            return t
        if parts > MAX_PARTS:
            break
        level = [part for each in level for part in _parts(each)]
    raise TypeSyntaxError(
        f"type `{t.name}` is too large when the types it names are written out",
        f"{MAX_PARTS} parts and {MAX_DEPTH - 1} levels are the most",
        code="BTC122",
    )


def _parts(t: Type) -> tuple[Type, ...]:
    return (*((t.item,) if t.item is not None else ()), *(field.type for field in t.fields), *t.options)
