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
from torch.distributed.tensor import DTensor, distribute_tensor

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
        """The tensors as they are now, whole, on the CPU, not shared with the model.

        Where they are spread over processes all have to ask at once.
        """
        return {name: whole(value).to("cpu", copy=True).contiguous() for name, value in self.parameters.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes over the values of `tensors`, which has the same names and shapes."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(as_in(value, tensors[name]))

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

    def save(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes `adapter_config.json` and, of a `copy`, `adapter_model.safetensors` into a new folder."""
        folder.mkdir(parents=True)
        self.write_config(folder)
        saved = {name: value.to(self.dtypes.get(name, value.dtype)) for name, value in tensors.items()}
        save_file(saved, folder / WEIGHTS, metadata={"format": "pt"})

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


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or put together from the shares of all processes, which all have to ask for it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_in(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the device of `like`, or this process' share of it as `like` is one."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
