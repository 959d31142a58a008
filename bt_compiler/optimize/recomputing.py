"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of each layer only the input is kept for the gradient.

The layer is computed a second time when its gradient is. transformers' own switch needs the model in training mode,
where layers drop out; here the layers' passes are wrapped and their mode stays. Knows a model's layers; nothing of
losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from bt_compiler.errors import CompileError


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Within, layers are computed twice. Raises CompileError BTC423 where it has none that are marked."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise CompileError.of(
            "BTC423",
            f"`{type(model).__name__}` has no layers that could be computed a second time",
            help="take `gradient_checkpointing` out of `optimize.weights`, and lower `part_tokens` to save memory",
        )
    for layer in layers:
        layer.forward = partial(_twice, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _twice(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
