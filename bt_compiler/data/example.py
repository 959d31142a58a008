"""One example: inputs, labels and an id that is the hash of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of a split after column mapping and type conversion."""

    id: str
    """First 16 hex digits of SHA-256 over canonical JSON of inputs and labels."""
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any]


class Splits(NamedTuple):
    """The data of a compile; disjoint by content."""

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
