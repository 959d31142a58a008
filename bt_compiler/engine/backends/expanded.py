"""The second tier: keys and values of a shared prefix computed once and copied for every row of a part.

For models whose attention cannot be replaced but which take a cache. Rows of one adapter and prefix run to their end
in parts by order of submission, padded on the left.
"""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bt_compiler.engine.backends.decoding import Choose, Row
from bt_compiler.engine.backends.memory import OutOfMemory, out_of_memory_named, part_too_large, row_too_large
from bt_compiler.engine.backends.schedule import Ended
from bt_compiler.errors import ExampleError


@dataclass(slots=True, kw_only=True)
class _Live:
    """A row of the part at work."""

    row: Row
    index: int
    pending: list[int]
    """Tokens to be fed one a step, before the next is chosen."""


@dataclass(slots=True, kw_only=True)
class ExpandedRows:
    """Parts of rows over a copied prefix."""

    model: Any
    choose: Choose
    use_adapter: Callable[[str | None], None]
    batch: int
    _waiting: deque[Row] = field(default_factory=deque)
    _prefix: tuple[tuple[str | None, tuple[int, ...]], Any] | None = None
    """The prefix computed last and its cache."""

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
        """Gives the prefix back."""
        self._prefix = None

    @torch.inference_mode()
    def step(self) -> list[Ended]:
        """Runs one part to its end. Raises BackendError (BTC514; BTC513 for a single row) where it has no room."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        key = (first.adapter, first.prompt.ids[: first.prompt.shared])
        part = [row for row in self._waiting if (row.adapter, row.prompt.ids[: row.prompt.shared]) == key]
        if key[1] and getattr(self.model.config.get_text_config(), "sliding_window", None):
            # a window counts places in the cache: padding between prefix and suffix would push tokens out of it
            part = [row for row in part if len(row.prompt.ids) == len(first.prompt.ids)]
        part = part[: self.batch]
        chosen = {id(row) for row in part}
        self._waiting = deque(row for row in self._waiting if id(row) not in chosen)
        self.use_adapter(first.adapter)
        try:
            with out_of_memory_named():
                return self._run(part, key)
        except OutOfMemory as error:
            self._prefix = None
            if len(part) > 1:
                raise part_too_large(len(part)) from error
            prompt = len(first.prompt.ids)
            raise row_too_large(prompt=prompt, answer=first.request.max_tokens, at_once=prompt) from error

    def _run(self, part: list[Row], key: tuple[str | None, tuple[int, ...]]) -> list[Ended]:
        ended: list[Ended] = []
        suffixes: list[list[int]] = []
        rows: list[_Live] = []
        for row in part:
            try:
                forced = row.start()
            except ExampleError as error:
                ended.append(Ended(row, error))
                continue
            if row.finish is not None:
                ended.append(Ended(row, None))
                continue
            rows.append(_Live(row=row, index=len(suffixes), pending=forced))
            suffixes.append(list(row.prompt.ids[len(key[1]) :]))
        if not rows:
            return ended
        cache = self._cache(key, len(rows))
        longest = max(len(item) for item in suffixes)
        device = self.model.device
        tokens = torch.tensor([[0] * (longest - len(item)) + item for item in suffixes], device=device)
        mask = torch.ones(len(rows), len(key[1]) + longest, dtype=torch.long, device=device)
        for index, suffix in enumerate(suffixes):
            mask[index, len(key[1]) : len(key[1]) + longest - len(suffix)] = 0
        live = rows
        while live:
            logits = self._forward(tokens, mask, cache)
            live = self._take(live, logits, ended)
            tokens = torch.zeros(len(rows), 1, dtype=torch.long, device=device)
            for item in live:
                tokens[item.index, 0] = item.pending.pop(0)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return ended

    def _take(self, live: list[_Live], logits: Tensor, ended: list[Ended]) -> list[_Live]:
        """Chooses for the rows without pending tokens; gives the rows that go on."""
        asked = [item for item in live if not item.pending]
        if asked:
            where = torch.tensor([item.index for item in asked], device=logits.device)
            tokens = self.choose([item.row for item in asked], logits[where])
            for item, token in zip(asked, tokens, strict=True):
                try:
                    item.pending = item.row.take(token)
                except ExampleError as error:
                    ended.append(Ended(item.row, error))
                    continue
                if item.row.finish is not None:
                    ended.append(Ended(item.row, None))
        return [item for item in live if item.pending]

    def _cache(self, key: tuple[str | None, tuple[int, ...]], rows: int) -> Any:
        """A cache that holds the prefix for every row; empty where there is none."""
        if not key[1]:
            return DynamicCache(config=self.model.config)
        if self._prefix is None or self._prefix[0] != key:
            cache = DynamicCache(config=self.model.config)
            tokens = torch.tensor([key[1]], device=self.model.device)
            self._forward(tokens, torch.ones_like(tokens), cache)
            self._prefix = (key, cache)
        cache = copy.deepcopy(self._prefix[1])
        cache.batch_repeat_interleave(rows)
        return cache

    def _forward(self, tokens: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Logits (rows, vocab) behind the last token."""
        accepted = inspect.signature(self.model.forward).parameters
        more: dict[str, Any] = {}
        if "position_ids" in accepted:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in accepted:
            more["logits_to_keep"] = 1
        output = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        logits: Tensor = output.logits[:, -1]
        return logits
