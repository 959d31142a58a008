"""Where passages of several retrievers meet and are told apart by id: `known`, and what a loop collects.

Follows passages through the program by name. Knows nothing of corpora, or of what a retriever is made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from bt_compiler.graph.program import Binding, Map, Node, Program, Ref, Repeat, Rerank, Retrieve, Sample, Switch, Value
from bt_compiler.spec.types import is_passage

Origins = Mapping[Ref, frozenset[str]]
"""Reference -> the retrievers whose passages it may hold; others hold none."""
_NONE: frozenset[str] = frozenset()


class Meeting(NamedTuple):
    """Retrievers whose passages of one id are taken for one."""

    retrievers: frozenset[str]
    where: str
    """In words."""


def meetings(program: Program) -> list[Meeting]:
    """Every one, each once; that of a single retriever is within it, where it is made of others."""
    found = [Meeting(frozenset({item.name}), f"retriever `{item.name}`") for item in program.retrievers]
    _body(program.nodes, {}, found)
    return list(dict.fromkeys(found))


def _body(nodes: Sequence[Node], outside: Origins, found: list[Meeting]) -> Origins:
    """What references inside the body hold."""
    here = dict(outside)
    for node in nodes:
        for field, names in _given(node, here, found).items():
            here[Ref(step=node.name, field=field)] = names
    return here


def _given(node: Node, here: Origins, found: list[Meeting]) -> dict[str, frozenset[str]]:
    """What the outputs of a node hold."""
    match node:
        case Retrieve() | Rerank():
            own = frozenset({node.retriever})
            if node.known is not None:
                found.append(Meeting(own | _held(node.known, here), f"`known` of step `{node.name}`"))
            return {"passages": own}
        case Repeat():
            return _repeated(node, here, found)
        case Switch():
            cases = [_bound(case.out, _body(case.body, here, found)) for case in node.cases]
            return {field.name: _NONE.union(*(case[field.name] for case in cases)) for field in node.outputs}
        case Map():
            item = {Ref(step=None, field=node.item): _held(node.over, here)}
            return _bound(node.out, _body(node.body, {**here, **item}, found))
        case Sample():
            return _bound(node.out, _body(node.body, here, found))
        case _:
            return {}


def _repeated(node: Repeat, here: Origins, found: list[Meeting]) -> dict[str, frozenset[str]]:
    """A visit may read what any visit before it carried on: until nothing new comes."""
    carried = {one.name: _held(one.start, here) for one in node.carry}
    while True:
        inside = _body(node.body, {**here, **{Ref(step=None, field=name): carried[name] for name in carried}}, found)
        after = {one.name: carried[one.name] | _held(one.value, inside) for one in node.carry}
        if after == carried:
            break
        carried = after
    for one in node.carry:
        if one.mode == "add" and one.type.item is not None and is_passage(one.type.item):
            found.append(Meeting(carried[one.name], f"`carry: {one.name}` of loop `{node.name}`"))
    return {**carried, **_bound(node.out, inside)}


def _bound(out: Iterable[Binding], inside: Origins) -> dict[str, frozenset[str]]:
    return {binding.name: _held(binding.value, inside) for binding in out}


def _held(value: Value | None, here: Origins) -> frozenset[str]:
    return here.get(value, _NONE) if isinstance(value, Ref) else _NONE
