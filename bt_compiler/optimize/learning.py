"""One training on a model at hand: what is to be trained is put in, trained, written to its folder and taken out again.

The same in a process of its own and in each of a launch. Knows tensors; nothing of where the model comes from.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bt_compiler.engine.backends.memory import out_of_memory_named
from bt_compiler.engine.progress import Progress
from bt_compiler.optimize.checkpoint import LossPoint
from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.full import full_attached
from bt_compiler.optimize.lora import lora_attached
from bt_compiler.optimize.recomputing import recomputed
from bt_compiler.optimize.stepping import Spread, Steps
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.training_run import Run, Store
from bt_compiler.optimize.tunable import Tunable

ADAPTER = "adapter"
"""Folder under the training's own that what was learnt is written to."""


def learn(
    model: Any,
    job: Job,
    store: Store,
    *,
    progress: Progress,
    crew: Crew,
    spread: Spread = Steps,
) -> tuple[LossPoint, ...]:
    """Trains from the checkpoint in the store's folder, where there is one; gives the loss of every step.

    `spread` is handed the model once everything is in it. Raises OutOfMemory, and CompileError: BTC402 loss not finite,
    BTC403 no such target module, BTC404 `job.start` does not fit, BTC423 no layers that could be computed twice.
    """
    twice: AbstractContextManager[None] = recomputed(model) if job.settings.gradient_checkpointing else nullcontext()
    with out_of_memory_named(), _attached(model, job) as tunable, twice:
        stepping = spread(model, tunable, job, crew)
        run = Run(stepping=stepping, tunable=tunable, job=job, store=store, progress=progress, crew=crew)
        history, tensors = run.train()
        if crew.writes:
            shutil.rmtree(store.folder / ADAPTER, ignore_errors=True)
            tunable.save(store.folder / ADAPTER, tensors)
    return history


def _attached(model: Any, job: Job) -> AbstractContextManager[Tunable]:
    if job.settings.method == "full":
        return full_attached(model, start=job.start)
    return lora_attached(model, job.settings, seed=job.seed, start=job.start)
