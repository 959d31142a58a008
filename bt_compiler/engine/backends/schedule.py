"""The first tier: rows packed into forward passes, prefixes shared, rows refilled as others end.

Knows rows, slots and packs; what attention does with a pack is in `attention`, what a row does in `decoding`. Where
memory runs out, the rows at work start again with half as many at once: what they write does not depend on that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bt_compiler.engine.backends.attention import Group, Ones, Pack, Run
from bt_compiler.engine.backends.decoding import Choose, Row
from bt_compiler.engine.backends.kv import BLOCK, Places, Prefix, PrefixStore, RowBlocks
from bt_compiler.engine.backends.memory import OutOfMemory, out_of_memory_named, part_too_large, reclaim, row_too_large
from bt_compiler.errors import BackendError, ExampleError

PIECE = 512
"""Most tokens of one row (or prefix) in one pass: a longer text is cut at multiples of this, whoever is near."""
PACK = 1024
"""Tokens of a pass beyond which no further row joins (16 suffixes of 60 tokens)."""
LONG = 16
"""Rows with more new tokens than this go before the others, so that all decode together afterwards."""


class Ended(NamedTuple):
    """A row that is done, or the error it ended with."""

    row: Row
    error: ExampleError | None


class Forward(Protocol):
    """Runs the model over a pack."""

    def __call__(self, tokens: Tensor, pack: Pack, keep: Tensor, adapter: str | None) -> Tensor:
        """Logits (kept, vocab) of the packed tokens `keep`; `tokens` is (size,)."""
        ...


@dataclass(slots=True, kw_only=True)
class _Live:
    """A row in a slot."""

    row: Row
    prefix: Prefix | None
    pending: list[int]
    """Tokens not yet fed."""
    own: int = 0
    """Tokens in the row's own cache."""


@dataclass(slots=True, kw_only=True)
class _Feed:
    """A live row's share of a pack."""

    slot: int
    live: _Live
    count: int
    start: int = 0


class _Chosen(NamedTuple):
    """The next token of a live row."""

    feed: _Feed
    token: int


@dataclass(slots=True, kw_only=True)
class PackedRows:
    """Rows of any adapters and prefixes, worked on together. The result of a row does not depend on the others."""

    forward: Forward
    choose: Choose
    slots: int
    """Rows worked on at once."""
    prefixes: PrefixStore
    refill: bool = True
    """False: a part of `slots` rows runs to its end before the next begins (where packing is not row-invariant)."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    own_tokens: int = 1 << 15
    """Bound on rows at work times the longest of them in tokens: rows wait rather than pass it."""
    pack: int = PACK
    """See PACK."""
    halved: Callable[[int], None] = lambda slots: None
    """Called with the new number of slots each time that memory has run out."""
    _waiting: deque[Row] = field(default_factory=deque)
    _live: list[_Live] = field(default_factory=list)
    _rows: RowBlocks = field(init=False)
    _turn: str = ""

    def __post_init__(self) -> None:
        self._rows = RowBlocks(self.slots)

    def add(self, rows: Iterable[Row]) -> None:
        """Puts rows behind those that wait."""
        self._waiting.extend(rows)

    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self._live

    def remove(self, ids: frozenset[str]) -> None:
        """Forgets rows by request id."""
        self._waiting = deque(row for row in self._waiting if row.request.id not in ids)
        for slot in range(len(self._live) - 1, -1, -1):
            if self._live[slot].row.request.id in ids:
                self._leave(slot)

    def release(self) -> None:
        """Gives the caches back; only where idle."""
        self._rows.clear()
        self.prefixes.clear()

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """One pass over rows of one adapter, after waiting rows have taken free slots: the rows that ended.

        Raises BackendError: BTC513 where a row has no room alone, BTC514 where a part has none and must not be smaller.
        """
        ended = self._admit()
        if not self._live:
            return ended
        try:
            with out_of_memory_named():
                chosen = self._advance()
        except OutOfMemory as error:
            refusal = self._refusal()
            self._withdraw()
            if refusal is not None:
                raise refusal from error
        else:
            return [*ended, *self._take(chosen)]
        reclaim()
        self.halved(self.slots)
        return ended

    def _refusal(self) -> BackendError | None:
        """Why there cannot be fewer rows at once."""
        if self.slots == 1:
            row = self._live[0].row
            return row_too_large(prompt=len(row.prompt.ids), answer=row.request.max_tokens, at_once=PIECE)
        return None if self.refill else part_too_large(self.slots)

    def _withdraw(self) -> None:
        """The rows at work wait again, in front; caches are given back, and there is half the room for new ones.

        PIECE stays: where a text is cut is part of its bytes.
        """
        for live in reversed(self._live):
            live.row.restart()
            self._waiting.appendleft(live.row)
        self._live.clear()
        self.prefixes.clear()
        self.slots, self.pack = max(1, self.slots // 2), max(1, self.pack // 2)
        self.own_tokens //= 2
        self._rows = RowBlocks(self.slots)

    def _admit(self) -> list[Ended]:
        ended: list[Ended] = []
        if not self.refill and self._live:
            return ended
        while self._waiting and len(self._live) < self.slots and self._fits(self._waiting[0]):
            row = self._waiting.popleft()
            try:
                forced = row.start()
            except ExampleError as error:
                ended.append(Ended(row, error))
                continue
            if row.finish is not None:
                ended.append(Ended(row, None))
                continue
            split = row.prompt.shared
            prefix = self.prefixes.get(row.adapter, row.prompt.ids[:split]) if split else None
            if prefix is not None:
                prefix.users += 1
            self._live.append(_Live(row=row, prefix=prefix, pending=[*row.prompt.ids[split:], *forced]))
        return ended

    def _fits(self, row: Row) -> bool:
        """Whether the caches stay within bounds with this row; the first always fits."""
        longest = max((_need(item.row) for item in self._live), default=0)
        return not self._live or (len(self._live) + 1) * max(longest, _need(row)) <= self.own_tokens

    def _advance(self) -> list[_Chosen]:
        long = [slot for slot, live in enumerate(self._live) if len(live.pending) > LONG]
        chosen = long or list(range(len(self._live)))
        adapter = self._next_adapter([self._live[slot].row.adapter for slot in chosen])
        chosen = [slot for slot in chosen if self._live[slot].row.adapter == adapter]
        if long:
            chosen.sort(key=lambda slot: len(self._live[slot].pending))
        feeds: list[_Feed] = []
        total = 0
        for slot in chosen:
            live = self._live[slot]
            self._compute_prefix(live.prefix, adapter)
            count = min(len(live.pending), PIECE)
            if feeds and total + count > self.pack:
                break
            feeds.append(_Feed(slot=slot, live=live, count=count))
            total += count
        return self._pass(feeds, adapter)

    def _next_adapter(self, present: Sequence[str | None]) -> str | None:
        """Adapters take turns, in the order of their names."""
        names = sorted({name or "" for name in present})
        later = [name for name in names if name > self._turn]
        self._turn = (later or names)[0]
        return self._turn or None

    def _compute_prefix(self, prefix: Prefix | None, adapter: str | None) -> None:
        """Computes what is missing of a prefix, alone, in pieces that follow from its length."""
        while prefix is not None and prefix.done < prefix.length:
            count = min(PIECE, prefix.length - prefix.done)
            size = _padded(count)
            tokens = torch.zeros(size, dtype=torch.long)
            tokens[:count] = torch.tensor(prefix.tokens[prefix.done : prefix.done + count])
            positions = torch.zeros(size, dtype=torch.long)
            positions[:count] = torch.arange(prefix.done, prefix.done + count)
            pack = Pack(
                size=size,
                positions=positions.to(self.device),
                rows=self._rows,
                ones=None,
                runs=[Run(start=0, count=count, past=prefix.done, slot=-1, target=prefix)],
                groups=[],
            )
            self.forward(tokens.to(self.device), pack, torch.zeros(16, dtype=torch.long, device=self.device), adapter)
            prefix.done += count
            self.prefixes.trim()

    def _pass(self, feeds: list[_Feed], adapter: str | None) -> list[_Chosen]:
        feeds.sort(key=lambda feed: (feed.count > 1, feed.slot))
        total = 0
        tokens: list[int] = []
        positions: list[int] = []
        for feed in feeds:
            feed.start = total
            total += feed.count
            tokens.extend(feed.live.pending[: feed.count])
            first = feed.live.own + (feed.live.prefix.length if feed.live.prefix else 0)
            positions.extend(range(first, first + feed.count))
        size = _padded(total)
        pad = [0] * (size - total)
        pack = Pack(
            size=size,
            positions=torch.tensor(positions + pad, device=self.device),
            rows=self._rows,
            ones=_ones([feed for feed in feeds if feed.count == 1], self.device),
            runs=[
                Run(start=feed.start, count=feed.count, past=feed.live.own, slot=feed.slot)
                for feed in feeds
                if feed.count > 1
            ],
            groups=_groups(feeds, total, self.device),
        )
        done = [feed for feed in feeds if feed.count == len(feed.live.pending)]
        last = [feed.start + feed.count - 1 for feed in done]
        keep = torch.tensor(last + [0] * (_padded(len(last)) - len(last)), device=self.device)
        logits = self.forward(torch.tensor(tokens + pad, device=self.device), pack, keep, adapter)
        for feed in feeds:
            feed.live.own += feed.count
            del feed.live.pending[: feed.count]
        if not done:
            return []
        tokens = self.choose([feed.live.row for feed in done], logits[: len(done)])
        return [_Chosen(feed, token) for feed, token in zip(done, tokens, strict=True)]

    def _take(self, chosen: Sequence[_Chosen]) -> list[Ended]:
        """Rows go on with their tokens; those that end leave."""
        ended: list[Ended] = []
        leaving: list[int] = []
        for feed, token in chosen:
            row = feed.live.row
            error: ExampleError | None = None
            try:
                feed.live.pending.extend(row.take(token))
            except ExampleError as failure:
                error = failure
            if error is not None or row.finish is not None:
                ended.append(Ended(row, error))
                leaving.append(feed.slot)
        for slot in sorted(leaving, reverse=True):
            self._leave(slot)
        return ended

    def _leave(self, slot: int) -> None:
        """Frees a slot; the last one moves into it, so that slots in use stay together."""
        live = self._live[slot]
        if live.prefix is not None:
            live.prefix.users -= 1
        last = self._live.pop()
        if slot < len(self._live):
            self._rows.move(len(self._live), slot, last.own)
            self._live[slot] = last


def _need(row: Row) -> int:
    tokens = len(row.prompt.ids) - row.prompt.shared + row.request.max_tokens
    return (tokens + BLOCK - 1) // BLOCK * BLOCK


def _padded(count: int) -> int:
    """Counts at which a product's rows have the same bytes (measured: multiples of 8 from 16 on)."""
    return max(16, (count + 7) // 8 * 8)


def _ones(feeds: Sequence[_Feed], device: torch.device) -> Ones | None:
    if not feeds:
        return None
    slots = [feed.slot for feed in feeds]
    past = [feed.live.own for feed in feeds]
    reach = []
    for block in range(max(past) // BLOCK + 1):
        reach.append(1 + max(slot for slot, own in zip(slots, past, strict=True) if own >= block * BLOCK))
    reach = [max(reach[index:]) for index in range(len(reach))]
    places = []
    for block in sorted({own // BLOCK for own in past}):
        mine = [index for index, own in enumerate(past) if own // BLOCK == block]
        places.append(
            Places(
                block=block,
                slots=torch.tensor([slots[index] for index in mine], device=device),
                offsets=torch.tensor([past[index] % BLOCK for index in mine], device=device),
                tokens=torch.tensor(mine, device=device),
            )
        )
    return Ones(
        slots=torch.tensor(slots, device=device),
        past=torch.tensor(past, device=device),
        in_order=slots == list(range(reach[0])),
        reach=tuple(reach),
        places=tuple(places),
    )


def _groups(feeds: Sequence[_Feed], total: int, device: torch.device) -> list[Group]:
    found: dict[int, tuple[Prefix, list[int]]] = {}
    for feed in feeds:
        prefix = feed.live.prefix
        if prefix is not None:
            found.setdefault(id(prefix), (prefix, []))[1].extend(range(feed.start, feed.start + feed.count))
    groups = []
    for prefix, tokens in found.values():
        if len(tokens) == total:
            groups.append(Group(prefix=prefix, tokens=None, count=total))
        else:
            padded = tokens + tokens[:1] * (_padded(len(tokens)) - len(tokens))
            groups.append(Group(prefix=prefix, tokens=torch.tensor(padded, device=device), count=len(tokens)))
    return groups
