"""What the self-check at load found: a value that a journal can keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How rows of a model are run."""

    tier: str
    """`shared-prefix attention`, `expanded prefix KV` or `generate`."""
    row_invariant: bool
    """Whether a row's logits had the same bytes in every batch that was tried."""
    reason: str = ""
    """Why it is not a better tier; empty for the best."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"tier": self.tier, "row_invariant": self.row_invariant, "reason": self.reason}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`."""
        return cls(tier=data["tier"], row_invariant=data["row_invariant"], reason=data["reason"])
