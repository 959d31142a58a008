"""One example: inputs, labels and an id that is the hash of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bt_compiler.canonical import digest

_ID_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of a split after column mapping and type conversion."""

    id: str
    """First 16 hex digits of SHA-256 over canonical JSON of inputs and labels; the second exact copy in a split ends
    in `.2`, the third in `.3`, so that ids are unique within a split."""
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]
    place: str | None = field(default=None, compare=False)
    """`file:line` of the row, for people; no part of what the example is."""

    @property
    def content(self) -> str:
        """The id without the number of the copy: equal for exact copies."""
        return content_of(self.id)


class Splits(NamedTuple):
    """The data of a compile; disjoint by content."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]


def content_of(id: str) -> str:
    """What the ids of exact copies have in common."""
    return id[:_ID_DIGITS]


def copies(one: str | None, other: str) -> bool:
    """Whether these are the ids of exact copies, or of one example; None is that of no example."""
    return one is not None and content_of(one) == content_of(other)


def make_example(inputs: Mapping[str, Any], labels: Mapping[str, Any], *, copy: int = 1) -> Example:
    """The example with these converted values; `copy` counts exact copies within a split."""
    content = digest([inputs, labels])[:_ID_DIGITS]
    return Example(id=content if copy == 1 else f"{content}.{copy}", inputs=inputs, labels=labels)
