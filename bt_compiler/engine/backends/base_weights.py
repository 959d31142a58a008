"""The weights of a base model beside an engine that holds its own copy: to encode rows, and to lend to a trainer.

Implements `WeightHost`. The model is in memory only while it is lent. Knows nothing of how requests are answered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bt_compiler.engine.backends.encoding import Encoder
from bt_compiler.engine.backends.hub import ResolvedModel, resolve_model
from bt_compiler.engine.backends.loading import (
    context_window,
    generation_config,
    load,
    load_tokenizer,
    read_config,
    stop_ids,
)
from bt_compiler.engine.backends.measuring import chosen_dtype, device_name
from bt_compiler.engine.backends.memory import OutOfMemory, reclaim
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import BaseFolder, PromptText
from bt_compiler.errors import BackendError


class BaseWeights:
    """A model's folder with its tokenizer, and the model itself when it is asked for."""

    def __init__(self, *, model_id: str, revision: str | None, cache_root: Path, progress: Progress) -> None:
        """Finds the folder and loads the tokenizer. Raises BackendError (BTC500 to BTC506)."""
        self._cache_root = cache_root
        self.resolved: ResolvedModel = resolve_model(
            model_id, revision=revision, cache_root=cache_root, progress=progress
        )
        path = self.resolved.path
        config, tokenizer = read_config(path), load_tokenizer(path)
        self.context_window = context_window(config)
        self.stop_ids = stop_ids((generation_config(path), config), tokenizer)
        self.encoder = Encoder(tokenizer, self.stop_ids)
        self.device = device_name()

    def fast_dtype(self) -> str:
        """The dtype that this machine computes the model fastest in."""
        return chosen_dtype(self.resolved.path, self.device, self._cache_root)

    @contextmanager
    def lend(self, dtype: str) -> Iterator[Any]:
        """The bare model in `dtype`, gone afterwards. Raises BackendError (BTC504, BTC505, BTC593)."""
        try:
            loaded = load(self.resolved.path, dtype=dtype, device=self.device)
        except OutOfMemory as error:
            raise BackendError.of(
                "BTC593",
                f"there is no room to load `{self.resolved.id}` for training in {dtype}",
                help="train on a device with more memory, or write `dtype: bfloat16` in the model",
            ) from error
        try:
            yield loaded.model
        finally:
            del loaded
            reclaim()

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        """See `WeightHost.borrow`; float32, or bfloat16 on a GPU that has it."""
        with self.lend(self._usual_dtype()) as model:
            yield model

    @contextmanager
    def set_aside(self) -> Iterator[BaseFolder]:
        """See `WeightHost.set_aside`; nothing is in memory in the first place."""
        yield BaseFolder(self.resolved.path, self._usual_dtype())

    def _usual_dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" and torch.cuda.is_bf16_supported() else "float32"

    def encode_row(self, prompt: PromptText, completion: str) -> tuple[list[int], int]:
        """See `WeightHost.encode_row`."""
        return self.encoder.row(prompt, completion)

    def base_model(self) -> tuple[str, str]:
        """See `WeightHost.base_model`."""
        return self.resolved.id, self.resolved.digest
