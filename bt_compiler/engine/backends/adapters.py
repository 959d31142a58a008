"""LoRA adapters on one base model: read from PEFT folders when first named, switched without touching base weights.

Knows PEFT; nothing of rows. The base model's modules are put back as they were on `detach`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter

_KEPT = 8
"""Adapters held in memory at once."""


class Adapters:
    """The adapters of one loaded model."""

    def __init__(self, model: Any, *, base_digest: str) -> None:
        self.model = model
        self.base_digest = base_digest
        self._modules = dict(model.named_modules())
        self._loaded: OrderedDict[str, str] = OrderedDict()
        self._known: dict[str, Adapter] = {}
        self._active: str | None = None
        self._layers: list[Any] = []
        self._count = 0

    def know(self, adapter: Adapter) -> None:
        """Loads an adapter that rows will name. Raises BackendError (BTC508, BTC509) where it cannot serve."""
        if adapter.sha256 in self._known:
            return
        check_base_weights(adapter, self.base_digest)
        self._load(adapter)
        self._known[adapter.sha256] = adapter

    def use(self, sha256: str | None) -> None:
        """Makes an adapter known before the active one; None: the base model alone."""
        if sha256 == self._active:
            return
        if sha256 is None:
            self._enable(False)
        else:
            if sha256 not in self._loaded:
                self._load(self._known[sha256])
            self._loaded.move_to_end(sha256)
            self._enable(True, self._loaded[sha256])
        self._active = sha256

    def detach(self) -> None:
        """Puts the base modules back as they were before any adapter; adapters load again when next named."""
        for name, module in self._modules.items():
            if name:
                parent_name, _, child = name.rpartition(".")
                parent = self._modules[parent_name]
                if parent._modules.get(child) is not module:
                    parent._modules[child] = module
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        if getattr(self.model, "_hf_peft_config_loaded", False):
            self.model._hf_peft_config_loaded = False
        self._loaded.clear()
        self._layers = []
        self._active = None

    def _enable(self, enabled: bool, name: str = "") -> None:
        for layer in self._layers:
            if name:
                layer.set_adapter(name, inference_mode=True)
            layer.enable_adapters(enabled)
            for parameter in layer.parameters():
                parameter.requires_grad_(False)

    def _read_config(self, adapter: Adapter) -> PeftConfig:
        check_folder(adapter)
        try:
            with quiet():
                return PeftConfig.from_pretrained(str(adapter.path))
        except (ValueError, OSError, TypeError, KeyError) as error:
            raise _unreadable(adapter, error) from error

    def _load(self, adapter: Adapter) -> None:
        if len(self._loaded) >= _KEPT:
            self._drop_oldest()
        config = self._read_config(adapter)
        self._count += 1
        name = f"a{self._count}"
        try:
            tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
        except (OSError, SafetensorError) as error:
            raise _unreadable(adapter, error) from error
        config.inference_mode = True
        with quiet(), torch.no_grad():
            try:
                inject_adapter_in_model(config, self.model, adapter_name=name)
                report = set_peft_model_state_dict(self.model, tensors, adapter_name=name)
            except (ValueError, RuntimeError, KeyError) as error:
                self.detach()
                raise _unreadable(adapter, error) from error
        foreign = list(report.unexpected_keys)
        if foreign:
            self.detach()
            raise BackendError.of(
                "BTC508",
                f"adapter `{adapter.name}` has {len(foreign)} tensors that fit no layer of the model (`{foreign[0]}`)",
                help=f"load the base model it was trained on: `{adapter.base_model}`",
            )
        self._layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self._layers:
            layer.eval()
            cast(Any, layer).to(dtype=self.model.dtype)
        self._loaded[adapter.sha256] = name
        self._enable(False)  # PEFT makes what it injects active at once
        self._active = None

    def _drop_oldest(self) -> None:
        sha256, name = next(iter(self._loaded.items()))
        for layer in self._layers:
            layer.delete_adapter(name)
        del self.model.peft_config[name]
        del self._loaded[sha256]


def check_base_weights(adapter: Adapter, base_digest: str) -> None:
    """Raises BackendError (BTC509) where the adapter was trained on other weights than those of that digest."""
    if adapter.base_digest != base_digest:
        raise BackendError.of(
            "BTC509",
            f"adapter `{adapter.name}` was trained on other base weights ({adapter.base_digest[:12]}) than those "
            f"loaded ({base_digest[:12]})",
            help=f"load the base model it was trained on: `{adapter.base_model}`",
        )


def check_folder(adapter: Adapter) -> None:
    """Raises BackendError (BTC508) where the folder says something else of itself than the adapter."""
    try:
        said = json.loads((Path(adapter.path) / "adapter_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _unreadable(adapter, error) from error
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        raise BackendError.of(
            "BTC508",
            f"adapter `{adapter.name}` is not a LoRA adapter",
            help="train it with LoRA; other kinds of adapter are not served",
        )
    if said.get("r") != adapter.rank:
        raise BackendError.of(
            "BTC508",
            f"adapter `{adapter.name}` is said to have rank {adapter.rank}, its folder says {said.get('r')}",
            help="the folder was changed after training: write the bundle again",
        )


def _unreadable(adapter: Adapter, error: BaseException) -> BackendError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    return BackendError.of(
        "BTC508",
        f"adapter `{adapter.name}` in `{adapter.path}` cannot be loaded: {line}",
        help="a PEFT folder holds adapter_config.json and adapter_model.safetensors, made for the same base model",
    )
