"""Token rows into batches: the order of an epoch, and the two shapes a batch can take.

`packed` lays all rows of a batch into one sequence behind the tokens they share, so that a shared prompt is computed
once and nothing is padding; who may see whom is in `owners`. `padded` is one row a line, filled up on the left, for
models that take no mask of their own. Knows plain integers only: no tensors, no tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from bt_compiler.canonical import seed_of

IGNORED = -100
"""Label of a token that has no loss, as `torch.nn.functional.cross_entropy` knows it."""
PREFIX = -1
"""Owner of the tokens that all rows of a packed batch share."""
WINDOW = 16
"""Batches sorted by length among themselves: rows of like length come together, and the order stays random."""
QUADRATIC = 1024
"""Tokens of context at which attention costs about as much as the linear layers of a small LM."""


class TokenRow(NamedTuple):
    """One row as the model sees it."""

    ids: tuple[int, ...]
    """Prompt, completion and end of turn."""
    start: int
    """Index of the first token with loss; at least 1."""
    rejected: TokenRow | None = None
    """The same prompt with a completion that is not wanted, where there is one."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed for it."""
        return len(self.ids) + (0 if self.rejected is None else self.rejected.tokens)

    @property
    def learnt(self) -> int:
        """Tokens with loss."""
        return len(self.ids) - self.start


class Packed(NamedTuple):
    """All rows in one sequence of n tokens."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Each token's place in its own row."""
    owners: tuple[int, ...]
    """Row of each token, or `PREFIX`: a token sees those of its own row and of the prefix that come before it."""
    predicting: tuple[int, ...]
    """Indices whose logits have a label."""
    labels: tuple[int, ...]
    """What they should predict, in the same order."""


class Padded(NamedTuple):
    """One row a line, all of one length, filled up on the left."""

    ids: tuple[tuple[int, ...], ...]
    real: tuple[tuple[int, ...], ...]
    """1 for a token, 0 for filling."""
    positions: tuple[tuple[int, ...], ...]
    keep: int
    """Last places of each line whose logits are needed."""
    labels: tuple[tuple[int, ...], ...]
    """`keep` labels a line, `IGNORED` where there is no loss."""


def epoch_batches(rows: Sequence[TokenRow], *, batch: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Indices of `rows` in batches for one epoch, a function of the arguments alone: a resume needs no state of it."""
    rng = random.Random(seed_of(seed, "order", epoch))
    order = list(range(len(rows)))
    rng.shuffle(order)
    span = batch * WINDOW
    batches: list[tuple[int, ...]] = []
    for first in range(0, len(order), span):
        window = sorted(order[first : first + span], key=lambda index: len(rows[index].ids))
        batches.extend(tuple(window[start : start + batch]) for start in range(0, len(window), batch))
    rng.shuffle(batches)
    return batches


def in_order(count: int, batch: int) -> list[tuple[int, ...]]:
    """Indices 0 to `count` in batches."""
    return [tuple(range(start, min(start + batch, count))) for start in range(0, count, batch)]


def parts(rows: Sequence[TokenRow], max_tokens: int) -> list[list[TokenRow]]:
    """The rows of one optimiser step in parts of `max_tokens` at most (a longer row is a part of its own)."""
    found: list[list[TokenRow]] = []
    held = 0
    for row in rows:
        if not found or held + row.tokens > max_tokens:
            found.append([])
            held = 0
        found[-1].append(row)
        held += row.tokens
    return found


def shared_prefix(rows: Sequence[TokenRow]) -> int:
    """Leading tokens that all rows have in common and none of which predicts a token with loss."""
    limit = min(row.start for row in rows) - 1
    first = rows[0].ids
    for index in range(limit):
        if any(row.ids[index] != first[index] for row in rows):
            return index
    return limit


def packing_pays(rows: Sequence[TokenRow]) -> bool:
    """Whether one packed sequence costs less than padded lines, attention counted as its square."""
    shared = shared_prefix(rows)
    length = shared + sum(len(row.ids) - shared for row in rows)
    longest = max(len(row.ids) for row in rows)
    return length * (1 + length / QUADRATIC) <= len(rows) * longest * (1 + longest / QUADRATIC)


def packed(rows: Sequence[TokenRow]) -> Packed:
    """Lays the rows behind their shared prefix."""
    shared = shared_prefix(rows)
    ids = list(rows[0].ids[:shared])
    positions = list(range(shared))
    owners = [PREFIX] * shared
    predicting: list[int] = []
    labels: list[int] = []
    for owner, row in enumerate(rows):
        offset = len(ids) - shared
        ids.extend(row.ids[shared:])
        positions.extend(range(shared, len(row.ids)))
        owners.extend([owner] * (len(row.ids) - shared))
        predicting.extend(range(offset + row.start - 1, offset + len(row.ids) - 1))
        labels.extend(row.ids[row.start :])
    return Packed(tuple(ids), tuple(positions), tuple(owners), tuple(predicting), tuple(labels))


def padded(rows: Sequence[TokenRow], filler: int) -> Padded:
    """Fills the rows up on the left with token `filler`."""
    longest = max(len(row.ids) for row in rows)
    keep = max(len(row.ids) - row.start for row in rows) + 1
    ids, real, positions, labels = [], [], [], []
    for row in rows:
        gap = longest - len(row.ids)
        ids.append((filler,) * gap + row.ids)
        real.append((0,) * gap + (1,) * len(row.ids))
        positions.append((0,) * gap + tuple(range(len(row.ids))))
        learnt = row.ids[row.start :]
        labels.append((IGNORED,) * (keep - 1 - len(learnt)) + learnt + (IGNORED,))
    return Padded(tuple(ids), tuple(real), tuple(positions), keep, tuple(labels))
