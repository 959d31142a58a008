"""The loss of training rows under a model, in one of the two shapes of `batches`.

Knows tensors and the call of a causal LM in transformers; nothing of adapters, optimisers or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from bt_compiler.optimize.batches import IGNORED, PREFIX, Packed, TokenRow, packed, packing_pays, padded
from bt_compiler.optimize.training_job import Precision

NARROW: Mapping[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What products are computed in where it is not the dtype of the weights."""


class Validated(NamedTuple):
    """Sums over completion tokens."""

    loss: float
    """Negative log-likelihood in nats."""
    probability: float


class RowLoss:
    """The loss of rows under a model: summed over completion tokens, logits computed only where there are labels."""

    def __init__(self, model: Any, *, precision: Precision, probe: Sequence[TokenRow]) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._compute = NARROW.get(precision)
        self.packs = len(probe) > 1 and self._packing_is_exact(probe)

    def sum(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """Scalar: summed negative log-likelihood in nats of the completion tokens of `rows`."""
        return functional.cross_entropy(*self._answers(rows), reduction="sum")

    def each(self, rows: Sequence[TokenRow]) -> torch.Tensor:
        """(rows,): log-probability in nats of each row's completion, summed over its tokens."""
        logits, labels = self._answers(rows)
        chances = torch.log_softmax(logits, dim=-1).gather(1, labels[:, None])[:, 0]
        return torch.stack([part.sum() for part in chances.split([row.learnt for row in rows])])

    def validate(self, rows: Sequence[TokenRow]) -> Validated:
        """Loss and probability of the completion tokens of `rows`, without gradients."""
        with torch.no_grad():
            logits, labels = self._answers(rows)
            chances = torch.log_softmax(logits, dim=-1).gather(1, labels[:, None])
        return Validated(loss=-chances.sum().item(), probability=chances.exp().sum().item())

    def _answers(self, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (labels, vocabulary) in float32 or wider and labels (labels,) of all tokens with loss, row by row."""
        if self.packs and packing_pays(rows):
            batch = packed(rows)
            return _wide(self._packed_logits(batch)), self._tensor(batch.labels)
        return self._padded(rows)

    def _packing_is_exact(self, rows: Sequence[TokenRow]) -> bool:
        """Whether the model takes a mask and positions of its own; architectures differ, so it is tried.

        The last row's logits must not move by a bit when the first row's tokens change, and the loss must be that of
        padded rows but for rounding. Named boundary: what a model raises on a mask it does not know is not ours, and
        the padded shape always works.
        """
        batch = packed(rows)
        changed = tuple(max(0, t - 1) if owner == 0 else t for t, owner in zip(batch.ids, batch.owners, strict=True))
        last = sum(row.learnt for row in rows[:-1])
        with torch.no_grad():
            expected = functional.cross_entropy(*self._padded(rows), reduction="sum").item()
            try:
                logits = self._packed_logits(batch)
                beside = self._packed_logits(batch._replace(ids=changed))
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
                return False
        found = functional.cross_entropy(_wide(logits), self._tensor(batch.labels), reduction="sum").item()
        narrow = self._compute is not None or next(self._model.parameters()).dtype not in (torch.float32, torch.float64)
        alike = math.isclose(found, expected, rel_tol=0.05 if narrow else 1e-3)
        return alike and torch.equal(logits[last:], beside[last:])

    def _packed_logits(self, batch: Packed) -> torch.Tensor:
        """Logits of the predicting tokens, shape (labels, vocabulary)."""
        owners = torch.tensor(batch.owners, device=self._device)
        size = len(batch.ids)
        seen = (owners[:, None] == owners[None, :]) | (owners[None, :] == PREFIX)
        seen &= torch.ones(size, size, dtype=torch.bool, device=self._device).tril()
        dtype = self._compute or next(self._model.parameters()).dtype
        mask = torch.zeros(size, size, dtype=dtype, device=self._device).masked_fill(~seen, torch.finfo(dtype).min)
        return self._logits(
            input_ids=self._tensor([batch.ids]),
            position_ids=self._tensor([batch.positions]),
            attention_mask=mask[None, None],
            logits_to_keep=self._tensor(batch.predicting),
        )[0]

    def _padded(self, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = padded(rows, filler=0)
        logits = self._logits(
            input_ids=self._tensor(batch.ids),
            position_ids=self._tensor(batch.positions),
            attention_mask=self._tensor(batch.real),
            logits_to_keep=batch.keep,
        )
        labels = self._tensor(batch.labels)
        learnt = labels != IGNORED
        return _wide(logits[learnt]), labels[learnt]

    def _logits(self, **inputs: Any) -> torch.Tensor:
        narrow = self._compute is not None
        with torch.autocast(self._device.type, self._compute or torch.bfloat16, enabled=narrow):
            logits: torch.Tensor = self._model(use_cache=False, **inputs).logits
        return logits

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._device)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
