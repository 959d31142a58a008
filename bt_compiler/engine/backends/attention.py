"""Shared-prefix attention over packed rows, as an attention function of transformers.

All new tokens of all rows lie one behind the other in one sequence, so that the linear layers see nothing but
tokens. Here alone they are rows again: a token attends to the prefix it shares with others (one large product for
all rows of a prefix) and to its row's own cache, with one softmax over both, merged by log-sum-exp (Dao et al. 2022,
"FlashAttention", section 3.1; Juravsky et al. 2024, "Hydragen"). What a row computes has shapes that follow from
that row alone; only counts of rows vary, in products whose rows are independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bt_compiler.engine.backends.kv import BLOCK, Places, Prefix, RowBlocks

NAME = "btc_shared_prefix"
"""Name of the attention function in transformers' registry."""

CHUNK = 64
"""Queries of one product: their scores stay in the processor's cache (measured: 2.9 times as fast as 1,000 at once)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Several new tokens of one row (or of a prefix being computed) in a pack."""

    start: int
    """Index of the first among the packed tokens."""
    count: int
    past: int
    """Tokens of the row's own cache before them."""
    slot: int
    """-1: the tokens belong to `target`."""
    target: Prefix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ones:
    """Rows with one new token each; packed token i belongs to slot `slots[i]`, tokens come first in the pack."""

    slots: Tensor
    """(n,), int64."""
    past: Tensor
    """(n,) own tokens before the new one."""
    in_order: bool
    """Whether `slots` is 0, 1, 2, …, so that the cache is used as it lies."""
    reach: tuple[int, ...]
    """By block: how many leading slots have tokens in it."""
    places: tuple[Places, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Packed tokens that attend to one prefix, padded by repetition to a multiple of 8, at least 16."""

    prefix: Prefix
    tokens: Tensor | None
    """Indices of the packed tokens; None: all of them in order."""
    count: int
    """Tokens that are not padding."""


@dataclass(slots=True, kw_only=True)
class Pack:
    """One forward pass over new tokens of several rows."""

    size: int
    """Tokens, padding included."""
    positions: Tensor
    """(size,) position of each token in its text."""
    rows: RowBlocks
    ones: Ones | None
    runs: Sequence[Run]
    groups: Sequence[Group]
    masks: dict[tuple[str, int, int | None], Tensor | None] = field(default_factory=dict)
    """Masks made so far, by kind, index and window: they are the same in every layer."""


class Part(NamedTuple):
    """Softmax over some of the keys, not yet normalised."""

    top: Tensor
    """Largest score, (..., 1), float."""
    total: Tensor
    """Sum of exponentials, (..., 1)."""
    mixed: Tensor
    """Values weighted by exponentials, (..., head size)."""


def shared_prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    btc_pack: Pack | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (1, heads, tokens, size), key and value (1, key heads, tokens, size).

    `btc_pack` comes through the model's forward. Options that are not known here raise ValueError, so that the check
    at load turns to another tier.
    """
    if btc_pack is None:
        raise ValueError("packed rows are missing: the model does not pass arguments through to its attention")
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ValueError("attention with sinks or a position bias is not packed")
    heads, tokens, size = query.shape[1:]
    key_heads = key.shape[1]
    if scaling is None:
        scaling = float(size) ** -0.5
    look = _Look(window=sliding_window, softcap=softcap)
    q = (query[0] * scaling).view(key_heads, heads // key_heads, tokens, size)
    own = _own(module.layer_idx, q, key[0], value[0], btc_pack, look)
    mixed = _with_prefixes(module.layer_idx, q, own, btc_pack, look)
    out = mixed.to(query.dtype).reshape(heads, tokens, value.shape[-1])
    return out.transpose(0, 1).unsqueeze(0).contiguous(), None


class _Look(NamedTuple):
    """How scores are made of products."""

    window: int | None
    softcap: float | None


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, softcap: float | None, past: int | None = None
) -> Part:
    """Queries (key heads, group, n, size) over keys (key heads, m, size); `hidden` (n, m): True where none may look.

    `past`: the queries belong to the keys behind the first `past` and do not look ahead, so a chunk of them is not
    multiplied with what comes after it.
    """
    parts = []
    for start, stop in _chunks(q.shape[2]):
        reach = keys.shape[1] if past is None else past + stop
        unseen = None if hidden is None else hidden[start:stop, :reach]
        parts.append(_chunk(q[:, :, start:stop], keys[:, :reach], values[:, :reach], unseen, softcap))
    return parts[0] if len(parts) == 1 else Part(*(torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)))


def _chunks(count: int) -> list[tuple[int, int]]:
    """Ranges of CHUNK each; a rest of less than 16 joins the last, for small products have bytes of their own."""
    starts = list(range(0, max(1, count - 15), CHUNK))
    return list(zip(starts, [*starts[1:], count], strict=True))


def _chunk(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, softcap: float | None) -> Part:
    heads, group, count, size = q.shape
    products = torch.matmul(q.reshape(heads, group * count, size), keys.transpose(1, 2))
    scores = _scores(products.view(heads, group, count, -1), hidden, softcap)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    mixed = torch.matmul(weights.to(values.dtype).flatten(1, 2), values).to(total.dtype)
    return Part(top, total, mixed.view(heads, group, count, -1))


def _scores(products: Tensor, hidden: Tensor | None, softcap: float | None) -> Tensor:
    scores = products if products.dtype in (torch.float32, torch.float64) else products.float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if hidden is not None:
        scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    return scores


def _own(layer: int, q: Tensor, key: Tensor, value: Tensor, pack: Pack, look: _Look) -> Part:
    """Every token over its row's own cache, the new tokens included: parts of shape (key heads, group, tokens, …)."""
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    shape = q.shape[:3]
    # padding keeps top 0, total 1, mixed 0: finite all the way through
    top = torch.zeros(*shape, 1, dtype=kind, device=q.device)
    total = torch.ones(*shape, 1, dtype=kind, device=q.device)
    mixed = torch.zeros(*shape, value.shape[-1], dtype=kind, device=q.device)
    if pack.ones is not None:
        count = len(pack.ones.slots)
        pack.rows.write_ones(layer, pack.ones.places, key, value)
        part = _ones(layer, q[:, :, :count], pack, pack.ones, look)
        top[:, :, :count], total[:, :, :count], mixed[:, :, :count] = part
    for index, run in enumerate(pack.runs):
        where = slice(run.start, run.start + run.count)
        part = _run(layer, q[:, :, where], key[:, where], value[:, where], pack, index, look)
        top[:, :, where], total[:, :, where], mixed[:, :, where] = part
    return Part(top, total, mixed)


def _run(layer: int, q: Tensor, key: Tensor, value: Tensor, pack: Pack, index: int, look: _Look) -> Part:
    """Tokens of one row over its own cache: every shape follows from the row alone."""
    run = pack.runs[index]
    # contiguous: how memory is aligned may decide how a product is summed
    key, value = key.contiguous(), value.contiguous()
    if run.target is not None:
        run.target.write(layer, run.past, key, value)
    else:
        pack.rows.write_run(layer, run.slot, run.past, key, value)
    if run.past:
        where = run.target
        past = pack.rows.past(layer, run.slot, run.past) if where is None else where.past(layer, run.past)
        key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)
    name = ("run", index, look.window)
    if name not in pack.masks:
        pack.masks[name] = _causal(run, look.window, q.device)
    return _attend(q, key, value, pack.masks[name], look.softcap, run.past)


def _causal(run: Run, window: int | None, device: torch.device) -> Tensor:
    """(count, past + count), True where a token must not look."""
    queries = torch.arange(run.past, run.past + run.count, device=device).unsqueeze(1)
    keys = torch.arange(run.past + run.count, device=device)
    hidden = keys > queries
    if window is not None:
        hidden |= queries - keys >= window
    return hidden


def _ones(layer: int, q: Tensor, pack: Pack, ones: Ones, look: _Look) -> Part:
    """One token a row over its own cache, block by block; q is (key heads, group, n, size)."""
    heads, group, _, size = q.shape
    slots = ones.reach[0]
    by_slot = q.permute(2, 0, 1, 3)
    if not ones.in_order:
        spread = q.new_zeros(slots, heads, group, size)
        spread[ones.slots] = by_slot
        by_slot = spread
    by_slot = by_slot.reshape(slots * heads, group, size)
    scores = []
    for index, reach in enumerate(ones.reach):
        keys, _ = pack.rows.block(layer, index, reach)
        products = torch.bmm(by_slot[: reach * heads], keys.transpose(1, 2)).view(reach, heads, group, BLOCK)
        scores.append(_scores(products, _block_mask(pack, ones, index, look.window), look.softcap))
    top = scores[0].amax(-1, keepdim=True)
    for index in range(1, len(scores)):
        reach = ones.reach[index]
        top[:reach] = torch.maximum(top[:reach], scores[index].amax(-1, keepdim=True))
    total, mixed = _blocks_mixed(layer, pack, ones, scores, top)
    part = [tensor.permute(1, 2, 0, 3) for tensor in (top, total, mixed)]
    if not ones.in_order:
        part = [tensor[:, :, ones.slots] for tensor in part]
    return Part(part[0], part[1], part[2])


def _blocks_mixed(layer: int, pack: Pack, ones: Ones, scores: list[Tensor], top: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the blocks in their order: a block that a row does not reach adds an exact zero."""
    total: Tensor | None = None
    mixed: Tensor | None = None
    for index, reach in enumerate(ones.reach):
        _, values = pack.rows.block(layer, index, reach)
        weights = scores[index].sub_(top[:reach]).exp_()
        here = weights.sum(-1, keepdim=True)
        product = torch.bmm(weights.to(values.dtype).flatten(0, 1), values).to(top.dtype)
        product = product.view(*weights.shape[:3], -1)
        if total is None or mixed is None:
            total, mixed = here, product
        else:
            total[:reach] += here
            mixed[:reach] += product
    assert total is not None and mixed is not None
    return total, mixed


def _block_mask(pack: Pack, ones: Ones, index: int, window: int | None) -> Tensor:
    """(reach, 1, 1, BLOCK), True where the row of a slot has no token, or one that its window hides."""
    name = ("block", index, window)
    mask = pack.masks.get(name)
    if mask is None:
        reach = ones.reach[index]
        last = ones.past.new_full((ones.reach[0],), -1)
        last[ones.slots] = ones.past
        keys = torch.arange(index * BLOCK, (index + 1) * BLOCK, device=last.device)
        mask = keys > last[:reach, None]
        if window is not None:
            mask |= last[:reach, None] - keys >= window
        mask = mask.view(reach, 1, 1, BLOCK)
        pack.masks[name] = mask
    return mask


def _with_prefixes(layer: int, q: Tensor, own: Part, pack: Pack, look: _Look) -> Tensor:
    """Merges the own parts with those over the prefixes: (key heads, group, tokens, size), normalised."""
    result = own.mixed / own.total
    for index, item in enumerate(pack.groups):
        mine = q if item.tokens is None else q[:, :, item.tokens]
        hidden = _prefix_mask(pack, item, index, look.window)
        shared = _attend(mine, item.prefix.keys[layer], item.prefix.values[layer], hidden, look.softcap)
        if item.tokens is None:
            return _merged(shared, own)
        real = item.tokens[: item.count]
        alone = Part(*(tensor[:, :, real] for tensor in own))
        result[:, :, real] = _merged(Part(*(tensor[:, :, : item.count] for tensor in shared)), alone)
    return result


def _merged(one: Part, two: Part) -> Tensor:
    top = torch.maximum(one.top, two.top)
    first, second = (one.top - top).exp_(), (two.top - top).exp_()
    return (one.mixed * first + two.mixed * second) / (one.total * first + two.total * second)


def _prefix_mask(pack: Pack, group: Group, index: int, window: int | None) -> Tensor | None:
    """(tokens, prefix tokens), True where the window hides a prefix token; None where it hides none."""
    if window is None:
        return None
    name = ("prefix", index, window)
    if name not in pack.masks:
        queries = pack.positions if group.tokens is None else pack.positions[group.tokens]
        keys = torch.arange(group.prefix.length, device=queries.device)
        hidden = queries.unsqueeze(1) - keys >= window
        pack.masks[name] = hidden if bool(hidden.any()) else None
    return pack.masks[name]
