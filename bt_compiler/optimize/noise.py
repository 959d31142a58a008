"""Noise on token embeddings while an adapter is trained: on few rows it keeps the model from learning them by heart.

NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise of at most alpha / sqrt(L d), for rows of L tokens and
embeddings of d numbers. Here L is the mean length of all rows, so that the noise of a row does not hang on how rows are
packed. Knows a model's embedding layer; nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch


@contextmanager
def noisy_embeddings(model: Any, *, alpha: float, length: float, seed: int) -> Iterator[None]:
    """Within, every forward pass of `model` sees noise that follows from `seed`. `alpha` 0: none."""
    if not alpha:
        yield
        return
    layer = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)

    def disturbed(_module: Any, _inputs: Any, embeddings: torch.Tensor) -> torch.Tensor:
        most = alpha / sqrt(length * embeddings.shape[-1])
        noise = torch.rand(embeddings.shape, generator=generator) * (2 * most) - most
        return embeddings + noise.to(embeddings)

    hook = layer.register_forward_hook(disturbed)
    try:
        yield
    finally:
        hook.remove()
