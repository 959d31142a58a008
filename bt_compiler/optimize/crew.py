"""The processes that train one model together: who computes which rows, and how their sums come together.

Every process has all rows and takes the same decisions; only passes over rows are shared out. A crew of one is the
trainer in a process of its own, and talks to nobody. Knows tensors and `torch.distributed`; nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import distributed

from bt_compiler.optimize.batches import TokenRow, parts

_BUCKET = 1 << 24
"""Numbers of a gradient that travel together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """One process' view of all."""

    rank: int = 0
    size: int = 1
    lockstep: bool = False
    """The model itself is spread over the processes, so that each pass over rows is one of all of them."""
    device: str = "cpu"
    """Where tensors have to be to travel."""

    @property
    def writes(self) -> bool:
        """Whether it is this process that writes files."""
        return self.rank == 0

    def own_parts(self, rows: Sequence[TokenRow], indices: Sequence[int], most: int) -> list[list[int]]:
        """Indices of the rows that this process computes, in parts of `most` tokens at most.

        Rows are dealt out one by one: a batch is sorted by length, so that all get about as much. In lockstep all have
        as many parts, some of them empty.
        """
        hands = [_cut(rows, indices[rank :: self.size], most) for rank in range(self.size)]
        own = hands[self.rank]
        count = max(map(len, hands)) if self.lockstep else len(own)
        return own + [[] for _ in range(count - len(own))]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes; all get the same bits."""
        if self.size == 1 or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(gathered, tensor)
        return [float(value) for value in torch.stack(gathered).cpu().sum(dim=0)]

    def agreed(self, value: float) -> float:
        """The first process' value: of what depends on a clock."""
        return self.sums([value if self.rank == 0 else 0.0])[0]

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Gives every process the sum of the gradients of all; none stands for zero. A spread model has added them."""
        if self.size == 1 or self.lockstep:
            return
        for bucket in _buckets(parameters):
            together = torch.cat([_gradient(value).flatten() for value in bucket])
            distributed.all_reduce(together)
            for value, summed in zip(bucket, together.split([value.numel() for value in bucket]), strict=True):
                value.grad = summed.view_as(value).clone()


def _gradient(value: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    held: list[torch.nn.Parameter] = []
    for value in parameters:
        if held and sum(item.numel() for item in held) + value.numel() > _BUCKET:
            yield held
            held = []
        held.append(value)
    if held:
        yield held


def _cut(rows: Sequence[TokenRow], indices: Sequence[int], most: int) -> list[list[int]]:
    found: list[list[int]] = []
    done = 0
    for part in parts([rows[index] for index in indices], most):
        found.append(list(indices[done : done + len(part)]))
        done += len(part)
    return found
