"""One row: which tokens it was given and has written, which token comes next, and when it ends.

Knows logits of its own alone; nothing of caches, packs or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bt_compiler.canonical import seed_of
from bt_compiler.engine.backends.constraints import Grammars, Matcher
from bt_compiler.engine.backends.encoding import Encoded
from bt_compiler.engine.request import Request, Sampling


@dataclass(slots=True, kw_only=True)
class Row:
    """A request while it is worked on."""

    request: Request
    prompt: Encoded
    matcher: Matcher | None
    stop_ids: frozenset[int]
    written: list[int] = field(default_factory=list)
    """Completion tokens so far, the stop token left out."""
    finish: Literal["stop", "length"] | None = None
    """Set once the row has ended."""
    script: tuple[int, ...] = ()
    """Tokens that are given: they are not chosen, but weighed."""
    chance: float = 0.0
    """Log-probability in nats of those of the script that were weighed so far."""

    def weigh(self, logits: Tensor) -> int:
        """The next token of the script, weighed under its own logits (vocab,) alone."""
        token = self.script[len(self.written)]
        self.chance += float(torch.log_softmax(logits.double(), dim=-1)[token])
        return token

    @property
    def adapter(self) -> str | None:
        """sha256 of the adapter; None: the base model."""
        return self.request.adapter.sha256 if self.request.adapter else None

    def start(self) -> list[int]:
        """Tokens that the grammar forces at once. Raises ExampleError."""
        return self._forced()

    def restart(self) -> None:
        """Forgets what was written: the row may start again, and then writes the same."""
        if self.matcher is not None:
            self.matcher.restart()
        self.written.clear()
        self.finish = None
        self.chance = 0.0

    def take(self, token: int) -> list[int]:
        """Goes on with the token chosen from logits: the tokens to be fed next, empty where the row has ended.

        Raises ExampleError where the grammar fails.
        """
        if self.matcher is not None:
            self.matcher.take(token)
        if token in self.stop_ids:
            self.finish = "stop"
            return []
        self.written.append(token)
        if self.matcher is not None and self.matcher.ended():
            self.finish = "stop"
        elif len(self.written) >= self.request.max_tokens:
            self.finish = "length"
        if self.finish is not None:
            return []
        return [token, *self._forced()]

    def _forced(self) -> list[int]:
        if self.matcher is None:
            return []
        tokens = [token for token in self.matcher.forced() if token not in self.stop_ids]
        room = self.request.max_tokens - len(self.written)
        self.written.extend(tokens[:room])
        if self.matcher.ended():
            self.finish = "stop" if len(tokens) <= room else "length"
        elif len(tokens) >= room:
            self.finish = "length"
        return tokens[:room]


Choose = Callable[[Sequence[Row], Tensor], list[int]]
"""From rows and their logits (rows, vocab) to the next token of each."""


def choose(rows: Sequence[Row], logits: Tensor, grammars: Grammars | None) -> list[int]:
    """The next token of every row from its logits (rows, vocab): greedy takes the lowest id of equals."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    held = [index for index, row in enumerate(rows) if row.matcher is not None]
    if held and grammars is not None:
        allowed = grammars.allowed([matcher for row in rows if (matcher := row.matcher) is not None])
        allowed = allowed.to(logits.device)
        if len(held) == len(rows):
            logits = logits.masked_fill(~allowed, -torch.inf)
        else:
            where = torch.tensor(held, device=logits.device)
            logits = logits.index_copy(0, where, logits[where].masked_fill(~allowed, -torch.inf))
    tokens: list[int] = logits.argmax(-1).tolist()
    for index, row in enumerate(rows):
        if row.script:
            tokens[index] = row.weigh(logits[index])
        elif row.request.sampling.temperature > 0:
            tokens[index] = sample(logits[index], row.request.sampling, len(row.written))
    return tokens


def sample(logits: Tensor, sampling: Sampling, position: int) -> int:
    """A token by temperature and nucleus (Holtzman et al. 2020); the noise is hash(seed, position) alone.

    Inverse of the cumulative distribution over tokens by falling probability, ties by id, in float64.
    """
    weights = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    ordered, ids = weights.sort(descending=True, stable=True)
    total = ordered.cumsum(-1)
    if sampling.top_p < 1.0:
        kept = int((total < sampling.top_p).sum()) + 1
        total = total[:kept]
    noise = seed_of(sampling.seed, position) / float(1 << 63) * float(total[-1])
    index = int(torch.searchsorted(total, torch.tensor(noise, dtype=total.dtype, device=total.device), right=True))
    return int(ids[min(index, len(total) - 1)])
