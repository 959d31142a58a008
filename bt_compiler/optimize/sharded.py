"""A model spread over processes by FSDP: each holds a share of every tensor, and layers are put together in passing.

PyTorch's `fully_shard` (FSDP2) on the decoder layers and the rest, by the settings that `accelerate launch` hands
over. Shares follow the model's own parameters, so that frozen and trained ones stand beside each other. Knows tensors;
nothing of rows or files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.stepping import Steps
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.tunable import Tunable


def sharded(model: Any, tunable: Tunable, job: Job, crew: Crew, *, reshard: bool) -> Steps:
    """Spreads `model` over all processes, and steps on the shares that its trained tensors have become.

    `reshard`: layers are taken apart again after each pass (ZeRO-3), else kept until the gradient is there (ZeRO-2).
    Gradients are summed over the processes, not averaged: the loss is normalised by all rows of a step already.
    """
    keys = {id(value): key for key, value in tunable.parameters.items()}
    names = {name: keys[id(value)] for name, value in model.named_parameters() if id(value) in keys}
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in layers:
        fully_shard(module, reshard_after_forward=reshard)
    fully_shard(model)
    for module in (*layers, model):
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    spread = dict(model.named_parameters())
    shares = dict(sorted((key, spread[name]) for name, key in names.items()))
    return Steps(model, replace(tunable, parameters=shares), job, crew)
