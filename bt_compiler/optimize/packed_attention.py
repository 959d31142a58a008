"""Attention over packed training rows, as an attention function of transformers: each row over the prefix and itself.

A mask over the whole pack would be as large as the square of all rows together, and at 2,000 tokens it costs more than
the linear layers. Here only what a row sees is multiplied. Knows spans of tokens; nothing of losses or adapters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "btc_packed_rows"
"""Name of the attention function in transformers' registry."""

CHUNK = 128
"""Queries of one product, which ends at the last of them: on a CPU, forward and backward, measured twice as fast as the
fused kernel with a mask at any length."""
LONG = 1536
"""Tokens of a row from which on its scores take more memory than everything else that is kept for the way back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Where the rows of a pack lie, behind `prefix` tokens that all of them see."""

    prefix: int
    rows: tuple[tuple[int, int], ...]
    """Start and end of each among the packed tokens."""
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    """Made so far, by tokens before, new tokens and window: they are the same in every layer."""


def packed_rows_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    btc_spans: Spans | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: query (1, heads, tokens, size), key and value (1, key heads, tokens, size).

    `btc_spans` comes through the model's forward. Options that are not known here raise ValueError, so that the loss
    turns to padded rows.
    """
    if btc_spans is None:
        raise ValueError("spans are missing: the model does not pass arguments through to its attention")
    if others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ValueError("attention with sinks or a position bias is not packed")
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else scaling
    mixed = []
    for start, stop in _pieces(btc_spans):
        keys, values = key[0, :, start:stop], value[0, :, start:stop]
        past = btc_spans.prefix if start else 0
        if past:
            keys = torch.cat([key[0, :, :past], keys], dim=1)
            values = torch.cat([value[0, :, :past], values], dim=1)
        hidden = _hidden(btc_spans, past, stop - start, sliding_window, query.device)
        mixed.append(_row(query[0, :, start:stop], keys, values, hidden, scale, softcap))
    return torch.cat(mixed, dim=1).transpose(0, 1).unsqueeze(0), None


def _pieces(spans: Spans) -> Iterator[tuple[int, int]]:
    if spans.prefix:
        yield 0, spans.prefix
    yield from spans.rows


def _hidden(spans: Spans, past: int, count: int, window: int | None, device: torch.device) -> Tensor:
    """(count, past + count), True where a token must not look."""
    name = (past, count, window)
    if name not in spans.masks:
        queries = torch.arange(past, past + count, device=device).unsqueeze(1)
        keys = torch.arange(past + count, device=device)
        hidden = keys > queries
        spans.masks[name] = hidden if window is None else hidden | (queries - keys >= window)
    return spans.masks[name]


def _row(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Queries (heads, n, size) over keys (key heads, m, size), the last of which are their own: (heads, n, size)."""
    count, past = q.shape[1], keys.shape[1] - q.shape[1]
    if softcap is None and keys.shape[1] > LONG:
        return functional.scaled_dot_product_attention(
            q[None], keys[None], values[None], attn_mask=~hidden, scale=scale, enable_gqa=True
        )[0]
    mixed = []
    for start in range(0, count, CHUNK):
        chunk = slice(start, min(start + CHUNK, count))
        seen = slice(0, past + chunk.stop)
        mixed.append(_chunk(q[:, chunk] * scale, keys[:, seen], values[:, seen], hidden[chunk, seen], softcap))
    return torch.cat(mixed, dim=1)


def _chunk(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, softcap: float | None) -> Tensor:
    grouped = q.reshape(keys.shape[0], -1, q.shape[-1])
    scores = torch.matmul(grouped, keys.transpose(1, 2)).view(*q.shape[:2], -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(scores.dtype).min), dim=-1)
    return torch.matmul(weights.view(*grouped.shape[:2], -1), values).view(*q.shape[:2], -1)


AttentionInterface.register(NAME, packed_rows_attention)
