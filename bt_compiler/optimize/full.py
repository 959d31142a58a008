"""All parameters of a borrowed model, lent to an optimiser as float32 copies; on leaving, the model is what it was.

The base weights are exchanged, never written to. Knows parameters; nothing of rows or optimisers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bt_compiler.artifact.adapter_folder import WEIGHTS
from bt_compiler.engine.backends.full_weights import FULL, exchange, slots_of
from bt_compiler.graph.candidate import Adapter
from bt_compiler.optimize.tunable import Tunable


@contextmanager
def full_attached(model: Any, *, start: Adapter | None) -> Iterator[Tunable]:
    """Puts copies of all parameters, or those of `start`, in their places; tied ones stay tied, dropout is off.

    They are saved in the dtype of the base, which is what they are served in. Raises CompileError BTC404 where `start`
    has other tensors.
    """
    base = dict(model.named_parameters())
    slots = slots_of(model)
    attention = getattr(model.config, "_attn_implementation", None)
    modes = {name: module.training for name, module in model.named_modules()}
    own = {name: torch.nn.Parameter(value.detach().to(torch.float32, copy=True)) for name, value in base.items()}
    exchange(slots, own)
    model.eval()
    try:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        weights = Tunable(
            parameters=dict(sorted(own.items())),
            write_config=_write_config,
            dtypes={name: value.dtype for name, value in base.items()},
        )
        if start is not None:
            weights.take(start, load_file(start.path / WEIGHTS))
        yield weights
    finally:
        model.set_attn_implementation(attention)
        exchange(slots, base)
        for name, module in model.named_modules():
            module.training = modes[name]


def _write_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": FULL, "r": 0}), encoding="utf-8")
