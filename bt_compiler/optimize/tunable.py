"""The trainable part of a borrowed model, whatever it is: its tensors by name, read, written and put back.

Knows tensors and the two files of an adapter's folder; nothing of rows, optimisers or how the tensors came there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from bt_compiler.artifact.adapter_folder import WEIGHTS
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """Parameters in the model that an optimiser may change."""

    parameters: Mapping[str, torch.nn.Parameter]
    """By their name in the file; float32 whatever the model is."""
    write_config: Callable[[Path], None]
    """Writes `adapter_config.json` into a folder."""
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """What they are saved as, where that is not float32."""
    dropouts: tuple[torch.nn.Module, ...] = ()
    """Modules that have to be in training for dropout to be on."""

    def copy(self) -> dict[str, torch.Tensor]:
        """The tensors as they are now, on the CPU, not shared with the model."""
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.parameters.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over the values of `tensors`, which has the same names and shapes."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(tensors[name])

    def take(self, start: Adapter, tensors: Mapping[str, torch.Tensor]) -> None:
        """As `load`, from the file of `start`. Raises CompileError BTC404 where names or shapes are others."""
        if {name: value.shape for name, value in tensors.items()} != {
            name: value.shape for name, value in self.parameters.items()
        }:
            raise CompileError.of(
                "BTC404",
                f"training cannot go on from `{start.name}`: it has another method, rank or target modules",
                help="set `optimize.weights.start: base`, or the method, rank and target modules it was trained with",
            )
        self.load(tensors)

    def save(self, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors` into a new folder."""
        folder.mkdir(parents=True)
        self.write_config(folder)
        tensors = {name: value.to(self.dtypes.get(name, value.dtype)) for name, value in self.copy().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    @contextmanager
    def dropout(self, seed: int) -> Iterator[None]:
        """Within, dropout is on and follows from `seed`; the caller's generators are left alone."""
        if not self.dropouts:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.dropouts:
                module.training = True
            try:
                yield
            finally:
                for module in self.dropouts:
                    module.training = False
