"""Going over the nodes and references of a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bt_compiler.graph.program import Binding, Call, Node, Program, Ref, Repeat, Retrieve, Value


def nodes(program: Program) -> Iterator[tuple[str, Node]]:
    """Every node with its path of names (`hops/hop`, as in `Step.node`), a loop before its body."""
    yield from nodes_of(program.nodes)


def nodes_of(body: Sequence[Node], prefix: str = "") -> Iterator[tuple[str, Node]]:
    """As `nodes`, over one body and the bodies inside it."""
    for node in body:
        path = prefix + node.name
        yield path, node
        if isinstance(node, Repeat):
            yield from nodes_of(node.body, f"{path}/")


def visits(program: Program) -> dict[str, int]:
    """How often each node runs at most, by path: the product of the counts of its loops."""
    found: dict[str, int] = {}
    for path, _ in nodes(program):
        parents = [loop for loop in found if path.startswith(f"{loop}/")]
        found[path] = 1
        for loop, node in nodes(program):
            if loop in parents and isinstance(node, Repeat):
                found[path] *= node.times
    return found


def values_of(node: Node) -> list[Value]:
    """The values a node takes where it stands: for a loop those of `start`, not those of its inside."""
    match node:
        case Call():
            return [binding.value for binding in node.inputs]
        case Retrieve():
            return [node.query]
        case Repeat():
            return [carry.start for carry in node.carry if carry.start is not None]


def inner_values_of(node: Repeat) -> list[Value]:
    """The values a loop takes from its own inside: `add`, `next`, `out`, `until`."""
    values: list[Value] = [carry.value for carry in node.carry]
    values += [binding.value for binding in node.out]
    return values if node.until is None else [*values, node.until]


def references(body: Sequence[Node], out: Sequence[Binding] = ()) -> Iterator[Ref]:
    """Every reference of the nodes, their insides and `out`."""
    values: list[Value] = [binding.value for binding in out]
    for _, node in nodes_of(body):
        values += values_of(node)
        if isinstance(node, Repeat):
            values += inner_values_of(node)
    return (value for value in values if isinstance(value, Ref))
