"""Going over the nodes and references of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from bt_compiler.graph.program import (
    Binding,
    Block,
    Call,
    Map,
    Node,
    Program,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    Sample,
    Switch,
    UseTool,
    Value,
)


def nodes(program: Program) -> Iterator[tuple[str, Node]]:
    """Every node with its path of names (`hops/hop`, as in `Step.node`), a block before its bodies."""
    yield from nodes_of(program.nodes)


def nodes_of(body: Sequence[Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    """As `nodes`, over one body and the bodies inside it."""
    for node in body:
        path = prefix + node.name
        yield path, node
        for inner, inside in bodies(node):
            yield from nodes_of(inside, f"{path}/{inner}")


def bodies(node: Node) -> Iterator[tuple[str, tuple[Node, ...]]]:
    """The bodies of a block, each with what comes between the block's path and its steps (`billing/` in a switch)."""
    match node:
        case Repeat() | Map() | Sample() | Rerank():
            yield "", node.body
        case Switch():
            yield from ((f"{case.label}/", case.body) for case in node.cases)
        case _:
            return


def visits(program: Program) -> dict[str, int]:
    """How often each node runs at most, by path: the product of the counts of what it stands in."""
    found: dict[str, int] = {}
    times: dict[str, int] = {}
    for path, node in nodes(program):
        found[path] = prod(count for block, count in times.items() if path.startswith(f"{block}/"))
        match node:
            case Repeat() | Sample():
                times[path] = node.times
            case Map():
                times[path] = node.at_most
            case Rerank():
                times[path] = node.depth
    return found


def dearest(program: Program, cost: Mapping[str, float]) -> float:
    """What one run costs at most, of the costs of nodes by path: of a switch its dearest case alone."""

    def of(body: Sequence[Node], prefix: str) -> float:
        total = 0.0
        for node in body:
            path = prefix + node.name
            inside = [of(steps, f"{path}/{inner}") for inner, steps in bodies(node)]
            total += cost.get(path, 0) + (max(inside) if isinstance(node, Switch) else sum(inside))
        return total

    return of(program.nodes, "")


def values_of(node: Node) -> list[Value]:
    """The values a node takes where it stands: for a block not those of its inside."""
    match node:
        case Call() | UseTool():
            return [binding.value for binding in node.inputs]
        case Retrieve() | Rerank():
            return [*node.query] if node.known is None else [*node.query, node.known]
        case Repeat():
            return [carry.start for carry in node.carry if carry.start is not None]
        case Switch():
            return [node.value]
        case Map():
            return [node.over]
        case Sample():
            return []


def inner_values_of(node: Block) -> list[Value]:
    """The values a block takes from its own inside: `add`, `next`, `out`, `until`, `best`."""
    match node:
        case Repeat():
            values: list[Value] = [carry.value for carry in node.carry]
            values += [binding.value for binding in node.out]
            return values if node.until is None else [*values, node.until]
        case Switch():
            return [binding.value for case in node.cases for binding in case.out]
        case Map():
            return [binding.value for binding in node.out]
        case Sample():
            given: list[Value] = [binding.value for binding in node.out]
            return given if node.best is None else [*given, node.best]
        case Rerank():
            return [node.score.value]


def references(body: Sequence[Node], out: Sequence[Binding] = ()) -> Iterator[Ref]:
    """Every reference of the nodes, their insides and `out`."""
    values: list[Value] = [binding.value for binding in out]
    for _, node in nodes_of(body):
        values += values_of(node)
        if isinstance(node, Block):
            values += inner_values_of(node)
    return (value for value in values if isinstance(value, Ref))
