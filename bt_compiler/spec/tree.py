"""A YAML document as a tree in which every key and every value knows where it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bt_compiler.diagnostics import Diagnostic, Span

Place = tuple[str | int, ...]
"""Keys and indexes from the top of a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A value and its place. `value` is a scalar, a dict of nodes by key or a list of nodes."""

    value: Any
    span: Span
    keys: Mapping[str, Span] = field(default_factory=dict)
    """Of a map: where each key stands."""

    @property
    def is_map(self) -> bool:
        """Whether the value is a map."""
        return isinstance(self.value, dict)


def plain(node: Node) -> Any:
    """The value without positions."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def find(root: Node, path: Sequence[str | int], *, key: bool = False) -> Span:
    """Span of the value at `path` (with `key` of its key), or of the nearest value around it.

    Where a path leads nowhere inside a map, the key of that map is the nearest small place.
    """
    node, spot = root, root.span
    for place, step in enumerate(path):
        last = place == len(path) - 1
        if isinstance(node.value, dict) and step in node.value:
            spot = node.keys[str(step)] if key and last else node.value[step].span
            node = node.value[step]
        elif isinstance(node.value, list) and isinstance(step, int) and 0 <= step < len(node.value):
            node = node.value[step]
            spot = node.span
        else:
            return spot
    return spot


def position(item: Diagnostic) -> tuple[str, int, int]:
    """What findings are sorted by: source, line, column."""
    return (item.span.source.name, item.span.line, item.span.column) if item.span else ("", 0, 0)
