"""The loop of training: epochs, steps, validation and checkpoints, in one process or in several that share the rows.

What it leaves is a function of the job, the base weights and the thread count: order, dropout and noise follow from
the seed and the position alone. Knows tensors and positions; nothing of where a model comes from or adapters go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from bt_compiler.canonical import seed_of
from bt_compiler.engine.progress import Progress
from bt_compiler.errors import CompileError
from bt_compiler.optimize.batches import epoch_batches, in_order, parts
from bt_compiler.optimize.checkpoint import Checkpoint, LossPoint, Position, read_checkpoint, write_checkpoint
from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.noise import noisy_embeddings
from bt_compiler.optimize.objective import Objective
from bt_compiler.optimize.row_loss import RowLoss, Validated
from bt_compiler.optimize.stepping import Stepping
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.tunable import Tunable
from bt_compiler.spec.sections import WeightsSection

_SCALE = 4096.0
"""What a loss is first multiplied by where gradients are float16, whose smallest numbers they would fall below."""


def learning_rate(step: int, total: int, settings: WeightsSection) -> float:
    """Rate of optimiser step `step` (from 0) of `total`: linear warm-up, then a cosine down to 0."""
    warmup = min(settings.warmup, total // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where checkpoints go and how often."""

    folder: Path
    key: str
    seconds: float
    clock: Callable[[], float]


class Trained(NamedTuple):
    """What came of it."""

    history: tuple[LossPoint, ...]
    tensors: Mapping[str, torch.Tensor]
    """What is to be kept, whole, on the CPU."""


class _Taken(NamedTuple):
    """What is known of a step, over all processes."""

    loss: float
    preferred: float
    """Pairs whose accepted completion has gained on the other."""
    norm: float
    """Of the gradient, before it was clipped."""


class Run:
    """One training run: the loop, its position and what it writes."""

    def __init__(
        self, *, stepping: Stepping, tunable: Tunable, job: Job, store: Store, progress: Progress, crew: Crew
    ) -> None:
        rows, settings = job.rows, job.settings
        self._stepping = stepping
        self._tunable = tunable
        self._job = job
        self._rows = rows
        self._settings = settings
        self._store = store
        self._progress = progress
        self._crew = crew
        model = stepping.model
        probe = parts(rows[: max(2, min(settings.batch, 4))], settings.part_tokens)[0]
        self._loss = RowLoss(model, precision=job.precision, probe=probe)
        self._objective = Objective(self._loss, rows, settings, self._crew)
        half = job.precision == "float16" or next(model.parameters()).dtype == torch.float16
        self._position = Position(scale=_SCALE if half else 1.0)
        self._best: dict[str, torch.Tensor] = {}
        self._length = sum(len(row.ids) for row in rows) / len(rows)
        self._saved = store.clock()

    @property
    def _epochs(self) -> int:
        return self._settings.epochs if self._position.planned is None else self._position.planned

    @property
    def _total(self) -> int:
        """Optimiser steps of all epochs."""
        return self._epochs * math.ceil(len(self._rows) / self._settings.batch)

    def train(self) -> Trained:
        """Trains to the end, from a checkpoint where there is one."""
        self._resume()
        self._progress.begin(f"training {self._job.name}", self._total)
        self._progress.advance(self._position.step)
        began, done = self._store.clock(), self._position.step
        while self._position.epoch < self._epochs and not self._patience_is_over():
            self._epoch()
            if self._position.planned is None:
                self._plan(began, done)
        return Trained(self._position.history, self._best or self._stepping.weights())

    def _plan(self, began: float, done: int) -> None:
        """Fits the epochs into the time given, by the steps since `done` at `began`; the checkpoint remembers it."""
        step_seconds = (self._store.clock() - began) / (self._position.step - done)
        if self._job.minutes is None:
            return
        step_seconds = self._crew.agreed(step_seconds)
        fitting = int(60 * self._job.minutes / (step_seconds * math.ceil(len(self._rows) / self._settings.batch)))
        self._position = replace(self._position, planned=max(self._position.epoch, min(self._settings.epochs, fitting)))
        self._save()
        if self._epochs < self._settings.epochs:
            self._progress.say(
                f"training {self._job.name}: {self._epochs} of {self._settings.epochs} epochs fit the budget"
            )

    def _epoch(self) -> None:
        batches = epoch_batches(self._rows, batch=self._settings.batch, seed=self._job.seed, epoch=self._position.epoch)
        for indices in batches[self._position.batch :]:
            point = self._step(indices)
            self._position = replace(
                self._position, batch=self._position.batch + 1, history=(*self._position.history, point)
            )
            self._progress.advance(1, f"loss {point.train:.3f}")
            if self._position.batch < len(batches) and self._crew.agreed(self._due()):
                self._save()
        self._end_epoch()

    def _step(self, indices: Sequence[int]) -> LossPoint:
        """One optimiser step on the rows of these indices."""
        number = self._position.step
        rate = learning_rate(number, self._total, self._settings)
        total, preferred, norm = self._taken(indices, rate)
        while math.isfinite(total) and not math.isfinite(norm) and self._position.scale > 1:
            self._position = replace(self._position, scale=self._position.scale / 2)
            total, preferred, norm = self._taken(indices, rate)
        if not math.isfinite(total) or not math.isfinite(norm):
            raise CompileError.of(
                "BTC402",
                f"training `{self._job.name}` broke down: the loss or its gradient is not finite at step {number + 1} "
                f"of {self._total}",
                help="set a lower `optimize.weights.learning_rate` or more `warmup` steps, or `model.dtype: float32`",
            )
        pairs = sum(self._rows[index].rejected is not None for index in indices)
        return LossPoint(
            step=number + 1,
            epoch=self._position.epoch + 1,
            train=round(total, 6),
            preferred=round(preferred / pairs, 6) if pairs else None,
        )

    def _taken(self, indices: Sequence[int], rate: float) -> _Taken:
        """Takes the step, unless its gradient is not finite."""
        total, preferred = 0.0, 0
        with self._disturbed():
            for share in self._objective.shares(indices):
                self._stepping.backward(share.loss, scale=self._position.scale, last=share.last)
                total += share.loss.item()
                preferred += share.preferred
        norm = self._stepping.step(rate)
        loss, gained = self._crew.sums([total, preferred])
        return _Taken(loss=loss, preferred=gained, norm=norm)

    @contextmanager
    def _disturbed(self) -> Iterator[None]:
        """Dropout and noise of this step, each process' own: they have other rows."""
        place = [self._position.step, *([self._crew.rank] if self._crew.rank else [])]
        with ExitStack() as stack:
            stack.enter_context(self._tunable.dropout(seed_of(self._job.seed, "dropout", *place)))
            noise = seed_of(self._job.seed, "noise", *place)
            alpha = self._settings.noise
            stack.enter_context(noisy_embeddings(self._stepping.model, alpha=alpha, length=self._length, seed=noise))
            yield

    def _end_epoch(self) -> None:
        """Validates, remembers the best adapter and writes a checkpoint."""
        position = replace(self._position, epoch=self._position.epoch + 1, batch=0)
        if self._job.validation:
            loss, probability = self._validate()
            point = replace(position.history[-1], validation=loss, probability=probability)
            position = replace(position, history=(*position.history[:-1], point))
            if position.best is None or probability > position.best:
                position = replace(position, best=probability, best_epoch=position.epoch)
                self._best = self._stepping.weights()
        self._position = position
        self._save()

    def _validate(self) -> Validated:
        """Means over the completion tokens of the validation rows."""
        rows, settings = self._job.validation, self._settings
        found = [(0.0, 0.0)]
        for indices in in_order(len(rows), settings.batch):
            for part in self._crew.own_parts(rows, indices, settings.part_tokens):
                values = self._loss.validate([rows[index] for index in part or indices[:1]])
                if part:  # else in lockstep: a pass that counts for nothing
                    found.append(values)
        count = sum(row.learnt for row in rows)
        sums = self._crew.sums([sum(values) for values in zip(*found, strict=True)])
        loss, probability = (value / count for value in sums)
        return Validated(loss=round(loss, 6), probability=round(probability, 6))

    def _patience_is_over(self) -> bool:
        patience, best = self._settings.patience, self._position.best_epoch
        return patience is not None and best is not None and self._position.epoch - best >= patience

    def _due(self) -> bool:
        return self._store.clock() - self._saved >= self._store.seconds

    def _save(self) -> None:
        if not (self._crew.writes or self._crew.lockstep):
            return
        checkpoint = Checkpoint(
            position=self._position,
            adapter=self._stepping.weights(),
            optimizer=self._stepping.state(),
            best=self._best,
        )
        if self._crew.writes:
            write_checkpoint(self._store.folder, self._store.key, checkpoint)
        self._saved = self._store.clock()

    def _resume(self) -> None:
        checkpoint = read_checkpoint(self._store.folder, self._store.key)
        step = 0 if checkpoint is None else checkpoint.position.step
        if self._crew.sums([step]) != [step * self._crew.size]:  # nobody writes a new one before all have read
            raise RuntimeError("the processes of one training read different checkpoints")
        if checkpoint is None:
            return
        self._position = checkpoint.position
        self._best = dict(checkpoint.best)
        self._stepping.restore(checkpoint.adapter, checkpoint.optimizer)
        self._progress.say(f"training {self._job.name} goes on after step {self._position.step} of {self._total}")
