"""What one optimiser step makes smaller: the loss of accepted completions, and that of preference pairs beside it.

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7) with a term for the accepted
completion's likelihood (Pang et al. 2024, arXiv 2404.19733, equation 1); the sums are those of TRL's `DPOTrainer` with
`loss_type: sigmoid` and `rpo_alpha`. TRL's trainer itself is not used: it saves by steps and not by the clock, keeps
its optimiser as a pickle, pads every row, and holds a reference model of its own, where here the weights that training
starts from are the reference. Knows token rows and their losses; nothing of optimisers or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from bt_compiler.optimize.batches import TokenRow, in_order
from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.row_loss import RowLoss
from bt_compiler.spec.sections import PreferenceSection, WeightsSection


class Share(NamedTuple):
    """One part of a step."""

    loss: torch.Tensor
    """Scalar; the step's loss is the sum over its parts, those of all processes."""
    preferred: int = 0
    """Pairs whose accepted completion has gained on the other since training began."""
    last: bool = False
    """No more parts of the step come from this process."""


class Objective:
    """The loss of steps over `rows`.

    Without `preference` it is the mean negative log-likelihood of the completion tokens. With it, the mean of
    -log sigmoid(beta (log-ratio of accepted to rejected - the same under the reference)) over the pairs of the step is
    added to `nll` times that; a row without a pair has its likelihood alone. The reference is the model as it is now:
    this is made before the first step and before a checkpoint is loaded.
    """

    def __init__(
        self, loss: RowLoss, rows: Sequence[TokenRow], settings: WeightsSection, crew: Crew | None = None
    ) -> None:
        self._loss = loss
        self._rows = rows
        self._preference = settings.preference
        self._most = settings.part_tokens
        self._crew = crew or Crew()
        self._reference: Mapping[int, float] = {} if self._preference is None else self._ratios(settings.batch)

    def shares(self, indices: Sequence[int]) -> Iterator[Share]:
        """The step over the rows of these indices: this process' part of it, in parts that fit in memory."""
        rows = [self._rows[index] for index in indices]
        count = sum(row.learnt for row in rows)
        pairs = max(1, sum(row.rejected is not None for row in rows))
        parts = self._crew.own_parts(self._rows, indices, self._most)
        for place, part in enumerate(parts, start=1):
            if not part:  # in lockstep: a pass that counts for nothing
                share = Share(0.0 * self._loss.sum(rows[:1]))
            elif self._preference is None:
                share = Share(self._loss.sum([self._rows[index] for index in part]) / count)
            else:
                share = self._with_pairs(part, self._preference, count, pairs)
            yield share._replace(last=place == len(parts))

    def _with_pairs(self, indices: Sequence[int], preference: PreferenceSection, count: int, pairs: int) -> Share:
        chosen, ratios = self._answered([self._rows[index] for index in indices])
        loss = -preference.nll * chosen.sum() / count
        reference = [self._reference[index] for index in indices if index in self._reference]
        if not reference:
            return Share(loss)
        margins = ratios - ratios.new_tensor(reference)
        loss = loss - functional.logsigmoid(preference.beta * margins).sum() / pairs
        return Share(loss, int((margins > 0).sum()))

    def _answered(self, part: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the accepted completions (rows,), and of them less the rejected ones (pairs,)."""
        rejected = [row.rejected for row in part if row.rejected is not None]
        chances = self._loss.each([*part, *rejected])
        chosen = chances[: len(part)]
        paired = [place for place, row in enumerate(part) if row.rejected is not None]
        return chosen, chosen[paired] - chances[len(part) :]

    def _ratios(self, batch: int) -> dict[int, float]:
        """Row -> log-ratio of its pair under the model as it is."""
        paired = [index for index, row in enumerate(self._rows) if row.rejected is not None]
        found = dict.fromkeys(paired, 0.0)
        with torch.no_grad():
            for places in in_order(len(paired), batch):
                indices = [paired[place] for place in places]
                for part in self._crew.own_parts(self._rows, indices, self._most):
                    _, ratios = self._answered([self._rows[index] for index in part or indices[:1]])
                    found |= zip(part, ratios.tolist(), strict=bool(part))
        return dict(zip(paired, self._crew.sums(list(found.values())), strict=True))
