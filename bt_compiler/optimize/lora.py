"""A LoRA adapter inside a borrowed model: put in, read, written out as a PEFT folder, taken out again.

Plain, rank-stabilised (`use_rslora`) or with magnitudes (`use_dora`), as PEFT computes them. Knows PEFT and the
names of a model's linear layers; nothing of rows or optimisers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from bt_compiler.artifact.adapter_folder import WEIGHTS
from bt_compiler.canonical import seed_of
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.optimize.tunable import Tunable
from bt_compiler.spec.sections import WeightsSection

_ADAPTER = "default"
_PREFIX = "base_model.model."
"""What PEFT puts before a parameter's name in its files."""


@contextmanager
def lora_attached(model: Any, settings: WeightsSection, *, seed: int, start: Adapter | None) -> Iterator[Tunable]:
    """Puts a fresh or a given adapter into `model`; on leaving, the model is what it was.

    The base is frozen and in evaluation mode meanwhile. A fresh adapter starts as LoRA does (arXiv 2106.09685, section
    4.1: A random, B zero) from a generator of its own, and with the base's own magnitudes where it has them (arXiv
    2402.09353, section 4.1), so that it changes nothing yet. Raises CompileError: BTC403 no such target module, BTC404
    `start` has other tensors.
    """
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.method == "rslora",
        use_dora=settings.method == "dora",
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
    _keep_gradients(model)
    try:
        model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", False) else "eager")
        lora = _tunable(model, config)
        _fill(lora, seed, start)
        yield lora
    finally:
        model.set_attn_implementation(attention)
        tuner.unload()
        for name, value in model.named_parameters():
            value.requires_grad_(trainable[name])
        for name, module in model.named_modules():
            module.training = modes[name]


def _keep_gradients(model: Any) -> None:
    """Layers of 4 bits stay in training mode, which changes no number: outside of it bitsandbytes packs their weights
    at the first pass without gradients, for a CPU kernel that has none either and says so in a warning only.
    """
    for module in model.modules():
        if type(getattr(module, "weight", None)).__name__ == "Params4bit":
            module.training = True


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


def _tunable(model: Any, config: LoraConfig) -> Tunable:
    parameters: dict[str, torch.nn.Parameter] = {}
    for name, value in model.named_parameters():
        if ".lora_" in name:
            value.data = value.data.float()
            value.requires_grad_(True)
            parameters[_file_name(name)] = value
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    dropouts = [layer.lora_dropout[_ADAPTER] for layer in layers if config.lora_dropout]
    if config.use_dora and dropouts:
        dropouts += layers  # a DoRA layer drops nothing out unless it is in training itself
    return Tunable(
        parameters=dict(sorted(parameters.items())),
        write_config=lambda folder: config.save_pretrained(str(folder)),
        dropouts=tuple(dropouts),
    )


def _file_name(name: str) -> str:
    """A parameter's name in PEFT's files: without the adapter's own, and magnitudes without `weight`."""
    magnitude = f".lora_magnitude_vector.{_ADAPTER}.weight"
    if name.endswith(magnitude):
        name = name.removesuffix(magnitude) + f".lora_magnitude_vector.{_ADAPTER}."
    return _PREFIX + name.replace(f".{_ADAPTER}.", ".").rstrip(".")


def _fill(lora: Tunable, seed: int, start: Adapter | None) -> None:
    """Initial values: those of `start`, or LoRA's own drawn in the order of the names; magnitudes are there already."""
    if start is not None:
        lora.take(start, load_file(start.path / WEIGHTS))
        return
    generator = torch.Generator().manual_seed(seed_of(seed, "adapter"))
    with torch.no_grad():
        for name, value in lora.parameters.items():
            if name.endswith("lora_magnitude_vector"):
                continue
            fresh = torch.zeros(value.shape)
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
            value.copy_(fresh)
