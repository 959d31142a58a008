"""What this machine computes fast: which dtype, by a step shaped like the model's, and how many products a second."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bt_compiler.engine.backends.loading import read_config
from bt_compiler.engine.backends.products import TORCH, fast_products, product_of

_FASTER = 1.5
"""How much faster bfloat16 has to be before its rounding is worth it."""
_ROWS = 64


def device_name() -> str:
    """`cuda` where there is a device, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_dtype(path: Path, device: str, cache_root: Path) -> str:
    """`bfloat16` where a decoding step is at least 1.5x faster in it than in `float32` by its fastest products, else
    `float32`.
    """
    if device == "cuda" and not torch.cuda.is_bf16_supported():
        return "float32"
    config = read_config(path).get_text_config()
    full = _step_seconds(config, torch.float32, device, fast_products("float32", device, cache_root))
    half = _step_seconds(config, torch.bfloat16, device, TORCH)
    return "bfloat16" if full >= _FASTER * half else "float32"


def _step_seconds(config: Any, dtype: torch.dtype, device: str, products: str) -> float:
    """Least seconds of the linear layers of a few decoder layers over `_ROWS` rows."""
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = max(1, min(4, (1 << 25) // (hidden * inner)))
    generator = torch.Generator().manual_seed(0)
    shapes = [(hidden, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)] * layers
    weights = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    inputs = {size: torch.randn(_ROWS, size, generator=generator).to(device, dtype) for size in {hidden, inner}}
    product = product_of(products)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for weight in weights:
            product(inputs[weight.shape[1]], weight)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def product_rate(dtype: str, device: str, products: str = TORCH) -> float:
    """FLOP/s of a large matrix product: the bound that no engine passes. The best of a few runs."""
    product = product_of(products)
    size = 4096 if device == "cuda" else 1024
    left, right = (torch.ones(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        product(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def token_work(model: Any) -> tuple[float, float]:
    """FLOPs of the model's matrices for one token, and for the logits of one token on top. Attention is left out."""
    head = model.get_output_embeddings().weight
    embedded = {id(head), id(model.get_input_embeddings().weight)}
    inner = sum(value.numel() for value in model.parameters() if id(value) not in embedded)
    return 2.0 * inner, 2.0 * head.numel()
