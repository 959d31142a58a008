"""Adapters on one base model: read from their folders when first named, switched without touching base weights.

LoRA in all its forms (plain, rank-stabilised, DoRA) is PEFT's own; whole sets of weights are `full_weights`'. Knows
nothing of rows. The base model's modules and weights are put back as they were on `detach`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bt_compiler.engine.backends.full_weights import FULL, FullWeights
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter

_KEPT = 8
"""Adapters held in memory at once, unless more are to be."""


class Adapters:
    """The adapters of one loaded model."""

    def __init__(self, model: Any, *, base_digest: str) -> None:
        self.model = model
        self.base_digest = base_digest
        self._modules = dict(model.named_modules())
        self._full = FullWeights(model)
        self._loaded: OrderedDict[str, str] = OrderedDict()
        self._known: dict[str, Adapter] = {}
        self._active: str | None = None
        self._layers: list[Any] = []
        self._count = 0
        self._most = _KEPT

    def hold(self, adapters: Sequence[Adapter]) -> None:
        """Loads adapters that rows will name; all of them stay in memory, but for whole sets of weights beyond what
        `full_weights` holds. Raises as `know`.
        """
        self._most = max(self._most, len(adapters))
        for adapter in adapters:
            self.know(adapter)

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
        if sha256 is not None and sha256 not in self._loaded and not self._full.holds(sha256):
            self._load(self._known[sha256])
        if sha256 is None or self._full.holds(sha256):
            self._enable(False)
            self._full.use(sha256)
        else:
            self._full.use(None)
            self._loaded.move_to_end(sha256)
            self._enable(True, self._loaded[sha256])
        self._active = sha256

    def detach(self) -> None:
        """Puts the base modules back as they were before any adapter; adapters load again when next named."""
        self._full.clear()
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

    def _load(self, adapter: Adapter) -> None:
        """Into memory; what was active no longer is, the base model alone."""
        said = check_folder(adapter)
        self._full.use(None)
        if said["peft_type"] == FULL:
            self._enable(False)
            try:
                self._full.load(adapter.sha256, Path(adapter.path))
            except (OSError, SafetensorError, ValueError) as error:
                raise _unreadable(adapter, error) from error
        else:
            self._load_lora(adapter)
        self._active = None

    def _load_lora(self, adapter: Adapter) -> None:
        # late: programs without adapters do without it
        from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
        from peft.tuners.tuners_utils import BaseTunerLayer

        try:
            with quiet():
                config = PeftConfig.from_pretrained(str(adapter.path))
        except (ValueError, OSError, TypeError, KeyError) as error:
            raise _unreadable(adapter, error) from error
        if len(self._loaded) >= self._most:
            self._drop_oldest()
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


def check_folder(adapter: Adapter) -> dict[str, Any]:
    """The folder's config. Raises BackendError (BTC508) where it says something else of itself than the adapter."""
    try:
        said = json.loads((Path(adapter.path) / "adapter_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _unreadable(adapter, error) from error
    if not isinstance(said, dict) or said.get("peft_type") not in ("LORA", FULL):
        raise BackendError.of(
            "BTC508",
            f"adapter `{adapter.name}` is neither a LoRA adapter nor a full set of weights",
            help="train it with a `method` of `optimize.weights`; other kinds of adapter are not served",
        )
    if said.get("r") != adapter.rank:
        raise BackendError.of(
            "BTC508",
            f"adapter `{adapter.name}` is said to have rank {adapter.rank}, its folder says {said.get('r')}",
            help="the folder was changed after training: write the bundle again",
        )
    return said


def _unreadable(adapter: Adapter, error: BaseException) -> BackendError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    return BackendError.of(
        "BTC508",
        f"adapter `{adapter.name}` in `{adapter.path}` cannot be loaded: {line}",
        help="a PEFT folder holds adapter_config.json and adapter_model.safetensors, made for the same base model",
    )
