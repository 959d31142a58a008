"""Training on the base weights that a backend lends: rows in, an adapter's folder out, LoRA or all parameters.

A run is a function of (base weights, rows, settings, seed, precision, thread count): the initial adapter, the order of
rows and dropout follow from the seed and the position alone, so that a killed run continues from its checkpoint and
ends in the same bytes. Knows tensors; nothing of programs, traces or metrics.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bt_compiler.artifact.adapter_folder import adapter_digest, canonical_adapter
from bt_compiler.canonical import digest, seed_of
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.request import WeightHost
from bt_compiler.errors import CompileError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.optimize.batches import TokenRow, epoch_batches, in_order, parts
from bt_compiler.optimize.checkpoint import (
    Checkpoint,
    LossPoint,
    Position,
    read_checkpoint,
    read_done,
    write_checkpoint,
    write_done,
)
from bt_compiler.optimize.full import full_attached
from bt_compiler.optimize.lora import lora_attached
from bt_compiler.optimize.noise import noisy_embeddings
from bt_compiler.optimize.objective import PART_TOKENS, Objective
from bt_compiler.optimize.row_loss import Precision, RowLoss, Validated
from bt_compiler.optimize.rows import Row
from bt_compiler.optimize.tunable import Tunable
from bt_compiler.spec.sections import WeightsSection

BETAS = (0.9, 0.99)
"""Of AdamW. Runs have some hundred steps: a second moment averaged over 1000, the usual 0.999, would outlast them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What came of it."""

    adapter: Adapter
    history: tuple[LossPoint, ...]


def train_adapter(
    *,
    host: WeightHost,
    rows: Sequence[Row],
    validation: Sequence[Row],
    settings: WeightsSection,
    seed: int,
    folder: Path,
    name: str,
    progress: Progress | None = None,
    start: Adapter | None = None,
    precision: Precision = "float32",
    minutes: float | None = None,
    checkpoint_seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Training:
    """Trains on `rows` and saves what was learnt under `folder`, which also holds the checkpoints.

    The loss is on completion tokens only; rows with a rejected completion are preference pairs (`objective`). With
    `validation` rows the weights of the epoch that gives their completion tokens the highest mean probability are kept,
    else the last: on few rows the loss is ruled by a single answer that is wrong and sure, and rises while answers
    still get better. `start`: weights to go on from instead of fresh ones. `precision` is that of matrix products; what
    is trained and its optimiser are always float32. `minutes`: the first epoch shows how many fit, at least one. The
    adapter's name is `name` and the start of its digest. Raises CompileError: BTC402 loss not finite, BTC403 no such
    target module, BTC404 `start` does not fit.
    """
    base_model, base_digest = host.base_model()
    job = _Job(
        rows=[_encoded(host, row) for row in rows],
        validation=[_encoded(host, row)._replace(rejected=None) for row in validation],
        settings=settings,
        seed=seed,
        precision=precision,
        name=name,
        minutes=minutes,
    )
    key = job.key(base_digest, start)
    target = folder / "adapter"
    done = read_done(folder, key)
    if done is None or not target.is_dir() or adapter_digest(target) != done[0]:
        with host.borrow() as model, _attached(model, settings, seed, start) as tunable:
            store = _Store(folder=folder, key=key, seconds=checkpoint_seconds, clock=clock)
            history = _Run(model=model, tunable=tunable, job=job, store=store, progress=progress or Silent()).train()
            shutil.rmtree(target, ignore_errors=True)
            tunable.save(target)
        canonical_adapter(target, base_model=base_model)
        sha256 = adapter_digest(target)
        write_done(folder, key, sha256=sha256, history=history)
    else:
        sha256, history = done
    adapter = Adapter(
        name=f"{name}-{sha256[:12]}",
        path=target,
        base_model=base_model,
        base_digest=base_digest,
        rank=0 if settings.method == "full" else settings.r,
        sha256=sha256,
    )
    return Training(adapter=adapter, history=history)


def _encoded(host: WeightHost, row: Row) -> TokenRow:
    ids, start = host.encode_row(row.prompt, row.completion)
    if row.rejected is None:
        return TokenRow(tuple(ids), start)
    others, begin = host.encode_row(row.prompt, row.rejected)
    return TokenRow(tuple(ids), start, TokenRow(tuple(others), begin))


def fast_precision() -> Precision:
    """`bfloat16` where this machine multiplies matrices in it at least 1.5 times as fast as in float32.

    Measured, so an earlier answer has to be kept for a compile that resumes. On CPUs without bfloat16 units it is
    nine times slower, with them five times faster.
    """
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return "bfloat16" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "float32"


def learning_rate(step: int, total: int, settings: WeightsSection) -> float:
    """Rate of optimiser step `step` (from 0) of `total`: linear warm-up, then a cosine down to 0."""
    warmup = min(settings.warmup, total // 2)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _attached(
    model: Any, settings: WeightsSection, seed: int, start: Adapter | None
) -> AbstractContextManager[Tunable]:
    if settings.method == "full":
        return full_attached(model, start=start)
    return lora_attached(model, settings, seed=seed, start=start)


def _settings(settings: WeightsSection) -> list[Any]:
    """What of the settings training depends on."""
    modules = settings.target_modules
    return [
        settings.method,
        settings.r,
        settings.alpha,
        settings.dropout,
        settings.noise,
        modules if isinstance(modules, str) else sorted(modules),
        settings.epochs,
        settings.learning_rate,
        settings.batch,
        settings.warmup,
        settings.clip,
        settings.patience,
        None if settings.preference is None else [settings.preference.beta, settings.preference.nll],
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is learnt, and how: all that the bytes of an adapter depend on beside the weights it starts from."""

    rows: Sequence[TokenRow]
    validation: Sequence[TokenRow]
    settings: WeightsSection
    seed: int
    precision: Precision
    name: str
    """For people alone."""
    minutes: float | None

    def key(self, base_digest: str, start: Adapter | None) -> str:
        """Of checkpoints and of the adapter that came of it."""
        facts = [base_digest, self.rows, self.validation, _settings(self.settings), self.seed, self.precision]
        facts += [start.sha256 if start else None, *([] if self.minutes is None else [self.minutes])]
        return digest(facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Store:
    """Where checkpoints go and how often."""

    folder: Path
    key: str
    seconds: float
    clock: Callable[[], float]


class _Run:
    """One training run: the loop, its position and what it writes."""

    def __init__(self, *, model: Any, tunable: Tunable, job: _Job, store: _Store, progress: Progress) -> None:
        rows, settings = job.rows, job.settings
        self._model = model
        self._tunable = tunable
        self._job = job
        self._rows = rows
        self._settings = settings
        self._store = store
        self._progress = progress
        self._names = sorted(tunable.parameters)
        self._values = [tunable.parameters[name] for name in self._names]
        self._optimizer = torch.optim.AdamW(self._values, lr=settings.learning_rate, betas=BETAS, weight_decay=0.0)
        self._loss = RowLoss(model, precision=job.precision, probe=rows[: max(2, min(settings.batch, 4))])
        self._objective = Objective(self._loss, rows, settings.preference, batch=settings.batch)
        self._position = Position()
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

    def train(self) -> tuple[LossPoint, ...]:
        """Trains to the end, from a checkpoint where there is one; leaves the adapter to keep in the model."""
        self._resume()
        self._progress.begin(f"training {self._job.name}", self._total)
        self._progress.advance(self._position.step)
        began, done = self._store.clock(), self._position.step
        while self._position.epoch < self._epochs and not self._patience_is_over():
            self._epoch()
            if self._position.planned is None:
                self._plan((self._store.clock() - began) / (self._position.step - done))
        if self._best:
            self._tunable.load(self._best)
        return self._position.history

    def _plan(self, step_seconds: float) -> None:
        """Fits the epochs into the time given; the checkpoint remembers it."""
        if self._job.minutes is None:
            return
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
            if self._position.batch < len(batches) and self._due():
                self._save()
        self._end_epoch()

    def _step(self, indices: Sequence[int]) -> LossPoint:
        """One optimiser step on the rows of these indices."""
        number = self._position.step
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(number, self._total, self._settings)
        total, preferred = 0.0, 0
        with (
            self._tunable.dropout(seed_of(self._job.seed, "dropout", number)),
            noisy_embeddings(
                self._model,
                alpha=self._settings.noise,
                length=self._length,
                seed=seed_of(self._job.seed, "noise", number),
            ),
        ):
            for share in self._objective.shares(indices):
                share.loss.backward()
                total += share.loss.item()
                preferred += share.preferred
        norm = torch.nn.utils.clip_grad_norm_(self._values, self._settings.clip)
        if not math.isfinite(total) or not math.isfinite(norm.item()):
            raise CompileError.of(
                "BTC402",
                f"training `{self._job.name}` broke down: the loss or its gradient is not finite at step {number + 1} "
                f"of {self._total}",
                help="set a lower `optimize.weights.learning_rate` or more `warmup` steps, or `model.dtype: float32`",
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        pairs = sum(self._rows[index].rejected is not None for index in indices)
        return LossPoint(
            step=number + 1,
            epoch=self._position.epoch + 1,
            train=round(total, 6),
            preferred=round(preferred / pairs, 6) if pairs else None,
        )

    def _end_epoch(self) -> None:
        """Validates, remembers the best adapter and writes a checkpoint."""
        position = replace(self._position, epoch=self._position.epoch + 1, batch=0)
        if self._job.validation:
            loss, probability = self._validate()
            point = replace(position.history[-1], validation=loss, probability=probability)
            position = replace(position, history=(*position.history[:-1], point))
            if position.best is None or probability > position.best:
                position = replace(position, best=probability, best_epoch=position.epoch)
                self._best = self._tunable.copy()
        self._position = position
        self._save()

    def _validate(self) -> Validated:
        """Means over the completion tokens of the validation rows."""
        found = [
            self._loss.validate(part)
            for indices in in_order(len(self._job.validation), self._settings.batch)
            for part in parts([self._job.validation[index] for index in indices], PART_TOKENS)
        ]
        count = sum(row.learnt for row in self._job.validation)
        loss, probability = (sum(values) / count for values in zip(*found, strict=True))
        return Validated(loss=round(loss, 6), probability=round(probability, 6))

    def _patience_is_over(self) -> bool:
        patience, best = self._settings.patience, self._position.best_epoch
        return patience is not None and best is not None and self._position.epoch - best >= patience

    def _due(self) -> bool:
        return self._store.clock() - self._saved >= self._store.seconds

    def _save(self) -> None:
        state: dict[str, torch.Tensor] = {}
        for name, value in zip(self._names, self._values, strict=True):
            moments = self._optimizer.state[value]
            state |= {f"{kind}:{name}": moments[kind] for kind in ("step", "exp_avg", "exp_avg_sq")}
        checkpoint = Checkpoint(position=self._position, adapter=self._tunable.copy(), optimizer=state, best=self._best)
        write_checkpoint(self._store.folder, self._store.key, checkpoint)
        self._saved = self._store.clock()

    def _resume(self) -> None:
        checkpoint = read_checkpoint(self._store.folder, self._store.key)
        if checkpoint is None:
            return
        self._position = checkpoint.position
        self._best = dict(checkpoint.best)
        self._tunable.load(checkpoint.adapter)
        for name, value in zip(self._names, self._values, strict=True):
            self._optimizer.state[value] = {
                kind: checkpoint.optimizer[f"{kind}:{name}"].to(value.device if kind != "step" else "cpu")
                for kind in ("step", "exp_avg", "exp_avg_sq")
            }
        self._progress.say(f"training {self._job.name} goes on after step {self._position.step} of {self._total}")
