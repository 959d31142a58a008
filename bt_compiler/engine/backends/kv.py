"""Keys and values: prefixes computed once and shared, and the own tokens of every row in fixed blocks.

Knows slots, blocks and bytes; nothing of requests, grammars or models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of a block. Every product over a row's own cache has this length, so that its bytes do not depend on how
long the neighbours are."""


@dataclass(slots=True, kw_only=True)
class Prefix:
    """Keys and values of the leading tokens that rows of one adapter share."""

    tokens: tuple[int, ...]
    keys: list[Tensor] = field(default_factory=list)
    """By layer, (key heads, tokens, head size)."""
    values: list[Tensor] = field(default_factory=list)
    done: int = 0
    """Tokens computed so far."""
    users: int = 0
    """Rows that attend to it now: it is not dropped meanwhile."""

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.tokens)

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Stores (key heads, n, head size) at token `start`; layers arrive in order in the first pass."""
        if layer == len(self.keys):
            heads, _, size = keys.shape
            self.keys.append(keys.new_zeros(heads, self.length, size))
            self.values.append(values.new_zeros(heads, self.length, values.shape[-1]))
        self.keys[layer][:, start : start + keys.shape[1]] = keys
        self.values[layer][:, start : start + keys.shape[1]] = values

    def past(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` keys and values of a layer."""
        return self.keys[layer][:, :count], self.values[layer][:, :count]

    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class PrefixStore:
    """Prefixes by (adapter, tokens), least recently used out first once `max_bytes` is passed."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], Prefix] = OrderedDict()

    def get(self, adapter: str | None, tokens: tuple[int, ...]) -> Prefix:
        """The entry, made empty (`done == 0`) where there is none."""
        key = (adapter, tokens)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Prefix(tokens=tokens)
        self._entries.move_to_end(key)
        return entry

    def trim(self) -> None:
        """Drops what is unused and over the bound."""
        total = sum(entry.nbytes() for entry in self._entries.values())
        for key, entry in list(self._entries.items()):
            if total <= self.max_bytes:
                return
            if entry.users == 0:
                total -= entry.nbytes()
                del self._entries[key]

    def clear(self) -> None:
        """Drops everything."""
        self._entries.clear()


class RowBlocks:
    """Own keys and values of the rows: by layer a list of blocks (slots, key heads, BLOCK, head size), zeroed.

    A slot is a row of every block. Blocks are added as rows grow; pages that no row touches cost nothing.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._keys: list[list[Tensor]] = []
        self._values: list[list[Tensor]] = []

    def _reserve(self, layer: int, blocks: int, keys: Tensor, values: Tensor) -> None:
        while layer >= len(self._keys):
            self._keys.append([])
            self._values.append([])
        while len(self._keys[layer]) < blocks:
            heads = keys.shape[0]
            self._keys[layer].append(keys.new_zeros(self.slots, heads, BLOCK, keys.shape[-1]))
            self._values[layer].append(values.new_zeros(self.slots, heads, BLOCK, values.shape[-1]))

    def write_run(self, layer: int, slot: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Stores (key heads, n, head size) of one row from its own token `start` on."""
        count = keys.shape[1]
        self._reserve(layer, (start + count + BLOCK - 1) // BLOCK, keys, values)
        done = 0
        while done < count:
            block, offset = divmod(start + done, BLOCK)
            size = min(BLOCK - offset, count - done)
            self._keys[layer][block][slot, :, offset : offset + size] = keys[:, done : done + size]
            self._values[layer][block][slot, :, offset : offset + size] = values[:, done : done + size]
            done += size

    def write_ones(self, layer: int, places: Sequence[Places], keys: Tensor, values: Tensor) -> None:
        """Stores one token of several rows; keys and values are (key heads, packed tokens, head size)."""
        for place in places:
            self._reserve(layer, place.block + 1, keys, values)
            self._keys[layer][place.block][place.slots, :, place.offsets] = keys[:, place.tokens].transpose(0, 1)
            self._values[layer][place.block][place.slots, :, place.offsets] = values[:, place.tokens].transpose(0, 1)

    def past(self, layer: int, slot: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` own keys and values of a row, copied together: (key heads, count, head size)."""
        blocks = (count + BLOCK - 1) // BLOCK
        keys = torch.cat([block[slot] for block in self._keys[layer][:blocks]], dim=1)[:, :count]
        values = torch.cat([block[slot] for block in self._values[layer][:blocks]], dim=1)[:, :count]
        return keys, values

    def block(self, layer: int, index: int, slots: int) -> tuple[Tensor, Tensor]:
        """Block `index` of the first `slots` rows, as (slots * key heads, BLOCK, head size)."""
        keys, values = self._keys[layer][index][:slots], self._values[layer][index][:slots]
        return keys.flatten(0, 1), values.flatten(0, 1)

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copies the first `tokens` own tokens of slot `source` to slot `target`."""
        blocks = (tokens + BLOCK - 1) // BLOCK
        for layer in (*self._keys, *self._values):
            for block in layer[:blocks]:
                block[target].copy_(block[source])

    def clear(self) -> None:
        """Gives all memory back."""
        self._keys.clear()
        self._values.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where single new tokens go that fall into the same block number."""

    block: int
    slots: Tensor
    offsets: Tensor
    tokens: Tensor
    """Index of each among the packed tokens."""
