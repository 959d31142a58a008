"""Optimiser steps: AdamW on the trained parameters of a model, its state as tensors of a checkpoint.

`Stepping` is what the loop of training asks for; `Steps` gives it where every process holds the parameters or shares
them as DTensors, `zero` where DeepSpeed does. Knows tensors; nothing of rows, epochs or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.tunable import Tunable, as_in, whole

BETAS = (0.9, 0.99)
"""Of AdamW. Runs have some hundred steps: a second moment averaged over 1000, the usual 0.999, would outlast them."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter beside the count of steps, by PyTorch's names."""

Tensors = Mapping[str, torch.Tensor]


class Stepping(Protocol):
    """Takes optimiser steps. Where processes share the model, each method is one of all of them."""

    @property
    def model(self) -> Any:
        """What passes over rows go through."""

    def backward(self, loss: torch.Tensor, *, scale: float, last: bool) -> None:
        """Adds the gradient of one part of a step; `last`: no more of them come from this process.

        On its way through the model it is `scale` times as large, the same in all parts of a step.
        """

    def step(self, rate: float) -> float:
        """Sums the gradients of all processes, clips them and takes a step with them.

        Gives the norm before it was clipped. Where that is not finite nothing changes but that the gradient is gone.
        """

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained tensors as they are now, whole, on the CPU, not shared with the model."""

    def state(self) -> dict[str, torch.Tensor]:
        """What AdamW has gathered, whole: `KIND:NAME`."""

    def restore(self, weights: Tensors, state: Tensors) -> None:
        """Takes over what `weights` and `state` gave."""


Spread = Callable[[Any, Tunable, Job, Crew], Stepping]
"""Spreads a model with all that is trained in it over the processes of the crew."""


class Steps:
    """`Stepping` by PyTorch alone: in one process, in several that each hold the model, or on DTensors."""

    def __init__(self, model: Any, tunable: Tunable, job: Job, crew: Crew) -> None:
        self._model = model
        self._tunable = tunable
        self._clip = job.settings.clip
        self._crew = crew
        self._names = sorted(tunable.parameters)
        self._values = [tunable.parameters[name] for name in self._names]
        self._optimizer = adamw(self._values, job)
        self._scale = 1.0

    @property
    def model(self) -> Any:
        """See `Stepping.model`."""
        return self._model

    def backward(self, loss: torch.Tensor, *, scale: float, last: bool) -> None:
        """See `Stepping.backward`."""
        (loss if scale == 1 else loss * scale).backward()
        self._scale = scale

    def step(self, rate: float) -> float:
        """See `Stepping.step`."""
        self._crew.add_gradients(self._values)
        if self._scale != 1:
            for value in self._values:
                if value.grad is not None:
                    value.grad.div_(self._scale)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._values, self._clip)).item()
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def weights(self) -> dict[str, torch.Tensor]:
        """See `Stepping.weights`."""
        return self._tunable.copy()

    def state(self) -> dict[str, torch.Tensor]:
        """See `Stepping.state`."""
        state: dict[str, torch.Tensor] = {}
        for name, value in zip(self._names, self._values, strict=True):
            moments = self._optimizer.state[value]
            state |= {f"{kind}:{name}": whole(moments[kind]) for kind in ("step", *MOMENTS)}
        return state

    def restore(self, weights: Tensors, state: Tensors) -> None:
        """See `Stepping.restore`."""
        self._tunable.load(weights)
        for name, value in zip(self._names, self._values, strict=True):
            self._optimizer.state[value] = {
                "step": state[f"step:{name}"].cpu(),
                **{kind: as_in(value, state[f"{kind}:{name}"]) for kind in MOMENTS},
            }


def adamw(values: list[torch.nn.Parameter], job: Job) -> torch.optim.AdamW:
    """The optimiser that all trainings use."""
    return torch.optim.AdamW(values, lr=job.settings.learning_rate, betas=BETAS, weight_decay=0.0)
