"""A LoRA adapter inside a borrowed model: put in, read, written out as a PEFT folder, taken out again.

Knows PEFT and the names of a model's linear layers; nothing of rows or optimisers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from bt_compiler.canonical import seed_of
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.spec.sections import WeightsSection

_ADAPTER = "default"
_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts before a parameter's name in its files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The trainable part of a model. Names are those of a PEFT file."""

    parameters: Mapping[str, torch.nn.Parameter]
    config: LoraConfig
    dropouts: tuple[torch.nn.Module, ...]

    def copy(self) -> dict[str, torch.Tensor]:
        """The tensors as they are now, on the CPU, not shared with the model."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.parameters.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over the values of `tensors`, which has the same names and shapes."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[name])

    @contextmanager
    def dropout(self, seed: int) -> Iterator[None]:
        """Within, the adapter's dropout is on and follows from `seed`; the caller's generators are left alone."""
        if not self.dropouts:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.dropouts:
                module.train()
            try:
                yield
            finally:
                for module in self.dropouts:
                    module.eval()


@contextmanager
def attached(model: Any, settings: WeightsSection, *, seed: int, start: Adapter | None) -> Iterator[Lora]:
    """Puts a fresh or a given adapter into `model`; on leaving, the model is what it was.

    The base is frozen and in evaluation mode meanwhile. A fresh adapter starts as LoRA does (arXiv 2106.09685, section
    4.1: A random, B zero) from a generator of its own. Raises CompileError: BTC403 no such target module, BTC404
    `start` has other tensors.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(model, settings),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    trainable = {name: value.requires_grad for name, value in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    attention = getattr(model.config, "_attn_implementation", None)
    model.requires_grad_(False)
    model.eval()
    with torch.random.fork_rng():
        tuner = LoraModel(model, config, _ADAPTER)
    tuner.eval()
    try:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        lora = _lora(model, config)
        _fill(lora, seed, start)
        yield lora
    finally:
        model.set_attn_implementation(attention)
        tuner.unload()
        for name, value in model.named_parameters():
            value.requires_grad_(trainable[name])
        for name, module in model.named_modules():
            module.training = modes[name]


def target_modules(model: Any, settings: WeightsSection) -> list[str]:
    """Last names of the layers that get an adapter, in alphabetical order.

    `all-linear` means all linear layers but the output head. Raises CompileError BTC403 for a name without a layer.
    """
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if settings.target_modules == "all-linear":
        return known
    for wanted in settings.target_modules:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            raise CompileError.of(
                "BTC403",
                f"the model has no linear layer `{wanted}`, named in `optimize.weights.target_modules`",
                help=did_you_mean(wanted, ["all-linear", *known], what="layers of this model"),
            )
    return sorted(settings.target_modules)


def save_adapter(folder: Path, lora: Lora) -> None:
    """Writes the PEFT folder as PEFT does: `adapter_config.json` and `adapter_model.safetensors`."""
    folder.mkdir(parents=True)
    lora.config.save_pretrained(str(folder))
    save_file(lora.copy(), folder / _FILE, metadata={"format": "pt"})


def _lora(model: Any, config: LoraConfig) -> Lora:
    parameters: dict[str, torch.nn.Parameter] = {}
    for name, value in model.named_parameters():
        if ".lora_" in name:
            value.data = value.data.float()
            value.requires_grad_(True)
            parameters[_PREFIX + name.replace(f".{_ADAPTER}.", ".")] = value
    dropouts = tuple(
        module
        for name, module in model.named_modules()
        if ".lora_dropout." in name and isinstance(module, torch.nn.Dropout)
    )
    return Lora(parameters=dict(sorted(parameters.items())), config=config, dropouts=dropouts)


def _fill(lora: Lora, seed: int, start: Adapter | None) -> None:
    """Initial values: those of `start`, or LoRA's own drawn in the order of the names."""
    if start is not None:
        tensors = load_file(start.path / _FILE)
        if {name: value.shape for name, value in tensors.items()} != {
            name: value.shape for name, value in lora.parameters.items()
        }:
            raise CompileError.of(
                "BTC404",
                f"training cannot go on from adapter `{start.name}`: it has another rank or other target modules",
                help="set `optimize.weights.start: base`, or the rank and target modules that the adapter has",
            )
        lora.load(tensors)
        return
    generator = torch.Generator().manual_seed(seed_of(seed, "adapter"))
    with torch.no_grad():
        for name, value in lora.parameters.items():
            fresh = torch.zeros(value.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            value.copy_(fresh)
