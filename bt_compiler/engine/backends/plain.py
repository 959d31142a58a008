"""The third tier: plain `generate`, one row at a time, for whatever else transformers loads.

The row's own choice of the next token stands in a logits processor, so that grammars and sampling are those of the
other tiers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from bt_compiler.engine.backends.decoding import Choose, Row
from bt_compiler.engine.backends.memory import OutOfMemory, out_of_memory_named, row_too_large
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.backends.schedule import Ended
from bt_compiler.errors import ExampleError


@dataclass(slots=True, kw_only=True)
class RowChooser:
    """A logits processor that leaves one token of the row's choice, and the criterion that stops with the row."""

    row: Row
    choose: Choose
    pending: deque[int] = field(default_factory=deque)
    error: ExampleError | None = None

    def process(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Called by `generate` with (1, tokens) and (1, vocab)."""
        if not self.pending:
            token = self.choose([self.row], scores)[0]
            try:
                self.pending.extend(self.row.take(token) or [token])
            except ExampleError as error:
                self.error = error
                self.pending.append(token)
        only = torch.full_like(scores, -torch.inf)
        only[0, self.pending.popleft()] = 0.0
        return only

    def stop(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token: (1,) True where the row has ended."""
        over = self.error is not None or (self.row.finish is not None and not self.pending)
        return torch.full((1,), over, device=input_ids.device)


@dataclass(slots=True, kw_only=True)
class PlainRows:
    """Rows one after the other."""

    model: Any
    choose: Choose
    use_adapter: Callable[[str | None], None]
    _waiting: deque[Row] = field(default_factory=deque)

    def add(self, rows: Iterable[Row]) -> None:
        """Takes rows."""
        self._waiting.extend(rows)

    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting

    def remove(self, ids: frozenset[str]) -> None:
        """Forgets rows by request id."""
        self._waiting = deque(row for row in self._waiting if row.request.id not in ids)

    def release(self) -> None:
        """Holds nothing."""

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """Runs the next row to its end. Raises BackendError (BTC513) where it has no room."""
        row = self._waiting.popleft()
        self.use_adapter(row.adapter)
        try:
            forced = row.start()
        except ExampleError as error:
            return [Ended(row, error)]
        if row.finish is not None:
            return [Ended(row, None)]
        chooser = RowChooser(row=row, choose=self.choose)
        ids = torch.tensor([[*row.prompt.ids, *forced]], device=self.model.device)
        try:
            with out_of_memory_named():
                self._generate(ids, row, chooser)
        except OutOfMemory as error:
            prompt = len(row.prompt.ids)
            raise row_too_large(prompt=prompt, answer=row.request.max_tokens, at_once=prompt) from error
        return [Ended(row, chooser.error)]

    def _generate(self, ids: Tensor, row: Row, chooser: RowChooser) -> None:
        with quiet():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=row.request.max_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([chooser.process]),
                stopping_criteria=StoppingCriteriaList([chooser.stop]),
            )
