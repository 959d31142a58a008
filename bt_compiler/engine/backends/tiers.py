"""The three ways of running rows, and how one is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from bt_compiler.engine.backends.attention import NAME, Pack, shared_prefix_attention
from bt_compiler.engine.backends.decoding import Choose, Row
from bt_compiler.engine.backends.expanded import ExpandedRows
from bt_compiler.engine.backends.kv import PrefixStore
from bt_compiler.engine.backends.loading import Loaded
from bt_compiler.engine.backends.plain import PlainRows
from bt_compiler.engine.backends.schedule import Ended, PackedRows

SHARED_PREFIX = "shared-prefix attention"
EXPANDED = "expanded prefix KV"
GENERATE = "generate"
PREFIX_BYTES = 1 << 30
"""Memory for prefixes that no row uses at the moment."""
ROW_BYTES = 2 << 30
"""Memory for the rows' own caches on the CPU; a GPU gives a quarter of its memory."""


class Tier(Protocol):
    """Works on rows until they end."""

    def add(self, rows: Iterable[Row]) -> None:
        """Takes rows."""
        ...

    def step(self) -> list[Ended]:
        """Works a little: the rows that ended meanwhile. Raises BackendError where memory runs out (BTC513, BTC514)."""
        ...

    def idle(self) -> bool:
        """Whether nothing is left to do."""
        ...

    def remove(self, ids: frozenset[str]) -> None:
        """Forgets rows by request id."""
        ...

    def release(self) -> None:
        """Gives caches back; only where idle."""
        ...


def packed_forward(model: Any, use_adapter: Callable[[str | None], None]) -> Callable[..., Tensor]:
    """The model over packs; puts the shared-prefix attention in the model's place for attention."""
    AttentionInterface.register(NAME, shared_prefix_attention)
    model.set_attn_implementation(NAME)

    def forward(tokens: Tensor, pack: Pack, keep: Tensor, adapter: str | None) -> Tensor:
        use_adapter(adapter)
        output = model(
            input_ids=tokens.unsqueeze(0),
            position_ids=pack.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=keep,
            btc_pack=pack,
        )
        logits: Tensor = output.logits[0]
        return logits

    return forward


def open_tier(
    tier: str,
    loaded: Loaded,
    *,
    choose: Choose,
    use_adapter: Callable[[str | None], None],
    batch: int,
    refill: bool = True,
    halved: Callable[[int], None] = lambda rows: None,
) -> Tier:
    """Opens the tier of that name on the model, which then attends in the way that the tier needs.

    `halved` is told how many rows are worked on at once from now on, each time that memory has run out.
    """
    model = loaded.model
    if tier == SHARED_PREFIX:
        return PackedRows(
            forward=packed_forward(model, use_adapter),
            choose=choose,
            slots=batch,
            prefixes=PrefixStore(PREFIX_BYTES),
            refill=refill,
            device=torch.device(model.device),
            own_tokens=_row_bytes(model) // _token_bytes(model),
            halved=halved,
        )
    # eager turns rows of padding into NaN where its mask does not fit its float32 softmax
    sdpa = tier == EXPANDED and getattr(model, "_supports_sdpa", False)
    model.set_attn_implementation("sdpa" if sdpa else "eager")
    if tier == EXPANDED:
        return ExpandedRows(model=model, choose=choose, use_adapter=use_adapter, batch=min(batch, 16))
    return PlainRows(model=model, choose=choose, use_adapter=use_adapter)


def _row_bytes(model: Any) -> int:
    if model.device.type == "cuda":
        return int(torch.cuda.get_device_properties(model.device).total_memory) // 4
    return ROW_BYTES


def _token_bytes(model: Any) -> int:
    """Keys and values of one token in all layers."""
    config = model.config.get_text_config()
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2 * int(config.num_hidden_layers) * heads * size * int(model.dtype.itemsize)
