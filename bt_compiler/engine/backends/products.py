"""float32 products of large linear layers by oneDNN, where torch takes a slower library by itself.

On x86 torch computes them by MKL, which leaves AVX-512 unused on AMD processors (Zen 5: 105 GFLOP/s a core against
240). oneDNN comes with torch too, behind the operator that torch's own compiler calls. A row's bytes depend neither
on the rows beside it (counts in multiples of 8 from 16 on) nor on the threads. One weakness: under a limit on address
space (`ulimit -v`), a thread in which it once found no room for its code gets no product of a new shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bt_compiler.engine.backends.remembered import remembered

ONEDNN, TORCH = "oneDNN", "torch"
_FASTER = 1.5
"""How much faster oneDNN has to be: machines lie near 1 or beyond 2, so that the choice is not up to noise."""
_SHAPE = (64, 1536, 576)
"""Rows, outputs and inputs of the product that decides: a decoding step of a small model."""
_LARGE = 1 << 16
"""Weights of a layer from which the operator's longer way in is worth it."""


def fast_products(dtype: str, device: str, cache_root: Path) -> str:
    """`oneDNN` or `torch`: what computes the linear layers of a model in `dtype` fast. Measured once on a machine."""
    if dtype != "float32" or device != "cpu" or not _available():
        return TORCH
    return str(remembered(cache_root, "products", "", measured_products))


def measured_products() -> str:
    """`oneDNN` where it is at least `_FASTER` times as fast as what torch takes by itself, else `torch`."""
    return ONEDNN if _available() and _seconds(_usual) >= _FASTER * _seconds(_onednn) else TORCH


def use_products(model: Any, products: str) -> None:
    """Has the model's large linear layers computed by `products`: for generating alone, without gradients. Adapters
    that are put around the layers stay torch's.
    """
    for layer in model.modules():
        if type(layer) is torch.nn.Linear and layer.weight.numel() >= _LARGE:
            layer.__dict__.pop("forward", None)
            if products == ONEDNN:
                layer.__dict__["forward"] = partial(_forward, layer)


def product_of(products: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`inputs (n, k), weight (m, k) -> (n, m)`."""
    return _onednn if products == ONEDNN else _usual


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _usual(inputs: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(inputs, weight)


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return out


def _forward(layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
    return _onednn(inputs, layer.weight, layer.bias)


def _seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
    rows, outputs, inputs = _SHAPE
    left, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        product(left, weight)
        best = min(best, time.perf_counter() - start)
    return best
