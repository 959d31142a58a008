"""Requests that ask how likely some texts are: a row for each, whose tokens are given and weighed.

The rows run among all others in any tier, so that what they give does not depend on their neighbours either. Knows
tokens; nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from bt_compiler.engine.backends.decoding import Row
from bt_compiler.engine.backends.encoding import Encoded, Encoder
from bt_compiler.engine.request import Choices, Completion, Finished, Request
from bt_compiler.errors import ExampleError


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A request whose rows have not all ended."""

    request: Request
    rows: list[Row]
    left: set[str]
    """Ids of rows under way."""


@dataclass(slots=True, kw_only=True)
class Weighings:
    """The requests of this kind that a backend has in flight."""

    encoder: Encoder
    stop_ids: frozenset[int]
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _owner: dict[str, str] = field(default_factory=dict)
    """Id of a row -> id of its request."""

    def rows(self, request: Request, choices: Choices, prompt: Encoded) -> list[Row]:
        """One row for each text, behind what all have in common; the longest counts as the request's `max_tokens`."""
        ids = [self._ids(request, choices, text) for text in choices.texts]
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))))
        if any(len(one) == shared for one in ids):
            raise RuntimeError("a text to be weighed is the beginning of all others")
        lead = Encoded((*prompt.ids, *ids[0][:shared]), prompt.shared)
        rows = [
            Row(
                request=replace(request, id=f"{request.id}#{index}", grammar=None, max_tokens=len(one) - shared),
                prompt=lead,
                matcher=None,
                stop_ids=self.stop_ids,
                script=tuple(one[shared:]),
            )
            for index, one in enumerate(ids)
        ]
        self._waiting[request.id] = _Waiting(request=request, rows=rows, left={row.request.id for row in rows})
        self._owner |= {row.request.id: request.id for row in rows}
        return rows

    def ended(self, row: Row, error: ExampleError | None) -> Finished | None:
        """The request of a row, once it was the last of its rows or has failed."""
        owner = self._owner.pop(row.request.id, None)
        waiting = None if owner is None else self._waiting.get(owner)
        if owner is None or waiting is None:
            return None
        waiting.left.discard(row.request.id)
        if error is None and waiting.left:
            return None
        del self._waiting[owner]
        if error is not None:
            return Finished(owner, error)
        first = waiting.rows[0]
        return Finished(
            owner,
            Completion(
                text="",
                finish="stop",
                prompt_tokens=len(first.prompt.ids),
                completion_tokens=sum(len(one.script) for one in waiting.rows),
                shared_tokens=first.prompt.shared,
                adapter=first.adapter,
                chances=tuple(one.chance for one in waiting.rows),
            ),
        )

    def forget(self, ids: Sequence[str]) -> frozenset[str]:
        """Ids of the rows of these requests, which are no longer waited for."""
        gone: set[str] = set()
        for id in ids:
            waiting = self._waiting.pop(id, None)
            gone |= set() if waiting is None else waiting.left
        for row in gone:
            self._owner.pop(row, None)
        return frozenset(gone)

    def _ids(self, request: Request, choices: Choices, text: str) -> list[int]:
        ids = self.encoder.completion(text)
        return [*ids, self.encoder.end_of_turn(request.prompt)] if choices.ends else ids
