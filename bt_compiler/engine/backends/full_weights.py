"""Whole sets of weights in place of the base model's: what full-parameter training leaves behind, and how it is served.

On disk it lies where an adapter would, in a folder of the same two files: a config with `peft_type: FULL`, and all
parameters of the model by name, so that a module has one slot whatever its weights are. In memory the model's
parameters are exchanged and never written to, so that the base is there again at once. Knows nothing of rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

FULL = "FULL"
"""`peft_type` of such a folder; PEFT has no kind of that name and refuses it."""
WEIGHTS = "adapter_model.safetensors"
_MEMORY = 4 << 30
"""Bytes of sets held in memory; one is held whatever its size."""


class Slot(NamedTuple):
    """A place in the model where a parameter is used."""

    module: torch.nn.Module
    name: str


def slots_of(model: Any) -> dict[str, tuple[Slot, ...]]:
    """Parameter name -> its places in the model; tied weights have several."""
    names = {id(value): name for name, value in model.named_parameters()}
    found: dict[str, tuple[Slot, ...]] = {name: () for name in names.values()}
    for module in model.modules():
        for local, value in module._parameters.items():
            if value is not None:
                found[names[id(value)]] += (Slot(module, local),)
    return found


def exchange(slots: Mapping[str, tuple[Slot, ...]], parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Puts `parameters` in their places; those that were there are left as they are."""
    for name, value in parameters.items():
        for slot in slots[name]:
            slot.module._parameters[slot.name] = value


def misfit(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """What about the tensors `found` is not as in `expected`, by name and shape; None: they fit."""
    for name in sorted(found.keys() ^ expected.keys()):
        return f"tensor `{name}` is {'missing' if name in expected else 'none of the model'}"
    for name in sorted(found):
        if found[name].shape != expected[name].shape:
            return f"tensor `{name}` has shape {tuple(found[name].shape)}, the model's {tuple(expected[name].shape)}"
    return None


class FullWeights:
    """The sets of weights that one loaded model can run on beside its own."""

    def __init__(self, model: Any) -> None:
        self._slots = slots_of(model)
        self._base: dict[str, torch.nn.Parameter] = dict(model.named_parameters())
        self._held: OrderedDict[str, dict[str, torch.nn.Parameter]] = OrderedDict()
        self._active: str | None = None

    def load(self, key: str, folder: Path) -> None:
        """Reads a set, in the dtype and on the device of the base; none may be in use, for the oldest make room.

        Raises OSError, SafetensorError, ValueError.
        """
        tensors = load_file(folder / WEIGHTS)
        wrong = misfit(tensors, self._base)
        if wrong is not None:
            raise ValueError(wrong)
        size = sum(value.nbytes for value in self._base.values())
        while self._held and (len(self._held) + 1) * size > _MEMORY:
            self._held.popitem(last=False)
        self._held[key] = {
            # copied: a file's tensors lie where they lie, and how memory is aligned may decide how a product is summed
            name: torch.nn.Parameter(tensors[name].to(value.device, value.dtype, copy=True), requires_grad=False)
            for name, value in self._base.items()
        }

    def holds(self, key: str) -> bool:
        """Whether the set is in memory."""
        return key in self._held

    def use(self, key: str | None) -> None:
        """Makes a set in memory the model's weights; None: its own again."""
        if key == self._active:
            return
        exchange(self._slots, self._base if key is None else self._held[key])
        if key is not None:
            self._held.move_to_end(key)
        self._active = key

    def clear(self) -> None:
        """The model's own weights again, and no others in memory."""
        self.use(None)
        self._held.clear()
