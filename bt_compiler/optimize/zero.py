"""A model spread over processes by DeepSpeed's ZeRO: what AdamW keeps, gradients too, or parameters as well.

Stages 1, 2 and 3 of Rajbhandari et al. 2020 (arXiv 1910.02054, section 5). The engine of DeepSpeed passes gradients on
and takes steps; rates, the scale of float16 losses and checkpoints stay with the loop of training, and precision with
`RowLoss`. Imported only in processes whose launch asks for it. Knows tensors; nothing of rows or files.
"""

from __future__ import annotations

import math
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch.nn import functional

from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.row_loss import NARROW
from bt_compiler.optimize.stepping import MOMENTS, Tensors, adamw
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.tunable import Tunable

_BUCKET = 1 << 24
"""Numbers that travel together; DeepSpeed's own default holds a buffer of two gigabytes for them."""


class ZeroSteps:
    """`Stepping` by DeepSpeed. `stage`: 1 spreads what AdamW keeps, 2 gradients too, 3 the model as well."""

    def __init__(self, model: Any, tunable: Tunable, job: Job, crew: Crew, *, stage: int) -> None:
        self._crew = crew
        self._stage = stage
        self._factor = 1.0
        self._parameters = dict(sorted(tunable.parameters.items()))
        values = list(self._parameters.values())
        for value in values:
            value.register_hook(self._scaled)
        if (narrow := NARROW.get(job.precision)) is not None:  # the engine ends the autocast that it is called in
            model.forward = torch.autocast(torch.device(crew.device).type, narrow)(model.forward)
        self._adam = adamw(values, job)
        deepspeed.ops.__compatible_ops__ = {}  # else kernels are compiled with g++ in a first launch on CPUs
        settings = _settings(stage, job.settings.clip)
        if stage == 3:  # here, so that no device ever holds the whole
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        self._engine: Any = deepspeed.initialize(model=model, optimizer=self._adam, config=settings)[0]
        if stage == 3:
            self._engine.module.to(self._engine.device)  # buffers, which are not spread

    @property
    def model(self) -> Any:
        """See `Stepping.model`."""
        return self._engine

    def backward(self, loss: torch.Tensor, *, scale: float, last: bool) -> None:
        """See `Stepping.backward`."""
        self._factor = self._crew.size / scale
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss if scale == 1 else loss * scale)

    def step(self, rate: float) -> float:
        """See `Stepping.step`."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else math.inf

    def weights(self) -> dict[str, torch.Tensor]:
        """See `Stepping.weights`."""
        return {name: _kept(safe_get_full_fp32_param(value)) for name, value in self._parameters.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """See `Stepping.state`."""
        count = next(iter(self._adam.state.values()))["step"]
        state: dict[str, torch.Tensor] = {}
        for name, value in self._parameters.items():
            state[f"step:{name}"] = _kept(count)
            state |= {f"{kind}:{name}": _kept(safe_get_full_optimizer_state(value, kind)) for kind in MOMENTS}
        return state

    def restore(self, weights: Tensors, state: Tensors) -> None:
        """See `Stepping.restore`."""
        self._make_state()
        with torch.no_grad(), deepspeed.zero.GatheredParameters(list(self._parameters.values()), modifier_rank=0):
            for name, value in self._parameters.items():
                value.copy_(weights[name])
        for name, value in self._parameters.items():
            if self._stage == 3:
                safe_set_local_fp32_param(value, self._share(weights[name]))
                for kind in MOMENTS:
                    safe_set_local_optimizer_state(value, self._share(state[f"{kind}:{name}"]), kind)
            else:
                safe_set_full_fp32_param(value, weights[name])
                for kind in MOMENTS:
                    safe_set_full_optimizer_state(value, state[f"{kind}:{name}"], kind)
        for share in self._adam.state.values():
            share["step"] = state[f"step:{next(iter(self._parameters))}"].clone()

    def _share(self, tensor: torch.Tensor) -> torch.Tensor:
        """The part of this process in stage 3: what is given whole DeepSpeed cuts past its end where sizes are odd."""
        size = -(-tensor.numel() // self._crew.size)
        padded = functional.pad(tensor.flatten(), (0, size * self._crew.size - tensor.numel()))
        return padded.narrow(0, size * self._crew.rank, size)

    def _make_state(self) -> None:
        """DeepSpeed makes what AdamW keeps in a first step: here one that changes nothing, of gradients of zero."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self._engine.device)
        self._factor = 0.0
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.backward(self._engine(input_ids=token, use_cache=False).logits.sum())
        self.step(0.0)

    def _scaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a part without the scale of its loss, so that the mean that DeepSpeed takes comes to the sum.

        Losses are normalised by all rows of a step already.
        """
        return gradient * self._factor if self._factor else torch.zeros_like(gradient)


def _settings(stage: int, clip: float) -> dict[str, Any]:
    """DeepSpeed's own config."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # it has to be there; parts come as they are
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET},
        "timers": {"throughput": {"enabled": False}},
    }


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
