"""Training on the base weights that a backend lends: rows in, an adapter's folder out, LoRA or all parameters.

A training is a function of (base weights, rows, settings, seed, precision, thread count): the initial adapter, the
order of rows and dropout follow from the seed and the position alone, so that a killed one continues from its
checkpoint and ends in the same bytes. It runs in this process, or in those of a launch. Knows nothing of programs,
traces or metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from bt_compiler.artifact.adapter_folder import adapter_digest, canonical_adapter
from bt_compiler.engine.backends.loading import load_base
from bt_compiler.engine.backends.measuring import device_name, product_rate
from bt_compiler.engine.backends.memory import OutOfMemory, reclaim
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.request import WeightHost
from bt_compiler.errors import BundleError, CompileError
from bt_compiler.graph.candidate import Adapter
from bt_compiler.optimize.accelerate_config import launch_digest
from bt_compiler.optimize.batches import TokenRow
from bt_compiler.optimize.checkpoint import (
    LossPoint,
    planned_epochs,
    read_done,
    read_fitting,
    write_done,
    write_fitting,
)
from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.launch import launched
from bt_compiler.optimize.learning import ADAPTER, learn
from bt_compiler.optimize.rows import Row
from bt_compiler.optimize.training_job import Job, Precision
from bt_compiler.optimize.training_run import Store
from bt_compiler.spec.sections import WeightsSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What came of it."""

    adapter: Adapter
    history: tuple[LossPoint, ...]


class _Learnt(NamedTuple):
    history: tuple[LossPoint, ...]
    whole: bool
    """Whether it is what comes of any time given: all epochs fitted into it."""


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
    is trained and its optimiser are always float32. `minutes`: the first epoch shows how many fit, at least one; where
    all did, it is done under any other. The adapter's name is `name` and the start of its digest. Where memory runs
    out, training starts over with parts half as large: what comes of it depends on their size, not on the moment.
    Raises CompileError: BTC402 loss not finite, BTC403 no such target module, BTC404 `start` does not fit, BTC421 a
    process of a launch died, BTC422 out of memory, BTC423 no layers that could be computed twice.
    """
    base_model, base_digest = host.base_model()
    job = Job(
        rows=[_encoded(host, row) for row in rows],
        validation=[_encoded(host, row)._replace(rejected=None) for row in validation],
        settings=settings,
        seed=seed,
        precision=precision,
        name=name,
        minutes=minutes,
        start=start,
        spread=None if settings.launch is None else launch_digest(settings.launch),
    )
    key, whole_key = job.key(base_digest), replace(job, minutes=None).key(base_digest)
    target = folder / ADAPTER
    done = read_done(folder, whole_key) or read_done(folder, key)
    if done is None or not _intact(target, done[0]):
        told = progress or Silent()

        def attempt(job: Job) -> _Learnt:
            store = Store(folder=folder, key=job.key(base_digest), seconds=checkpoint_seconds, clock=clock)
            history = _learnt(host, job, store, told)
            return _Learnt(history, job.minutes is None or planned_epochs(folder, store.key) == settings.epochs)

        history, whole = _fitted(job, key, folder, told, attempt)
        canonical_adapter(target, base_model=base_model)
        sha256 = adapter_digest(target)
        write_done(folder, whole_key if whole else key, sha256=sha256, history=history)
    else:
        sha256, history = done
    return Training(adapter=_adapter(host, job, target, sha256), history=history)


def _intact(folder: Path, sha256: str) -> bool:
    try:
        return adapter_digest(folder) == sha256
    except BundleError:
        return False  # gone or damaged: it is trained again


def _adapter(host: WeightHost, job: Job, path: Path, sha256: str) -> Adapter:
    base_model, base_digest = host.base_model()
    return Adapter(
        name=f"{job.name}-{sha256[:12]}",
        path=path,
        base_model=base_model,
        base_digest=base_digest,
        rank=0 if job.settings.method == "full" else job.settings.r,
        sha256=sha256,
    )


def _learnt(host: WeightHost, job: Job, store: Store, progress: Progress) -> tuple[LossPoint, ...]:
    """One attempt, in this process or in others. Raises OutOfMemory."""
    if job.settings.launch is not None:
        with host.set_aside() as base:
            return launched(job, job.settings.launch, base, store, progress)
    if job.settings.quantize is None:
        with host.borrow() as model:
            return learn(model, job, store, progress=progress, crew=Crew())
    with host.set_aside() as base:
        model = load_base(base.path, dtype=base.dtype, device=device_name(), in_4bit=True)
        return learn(model, job, store, progress=progress, crew=Crew())


def _fitted(job: Job, key: str, folder: Path, progress: Progress, attempt: Callable[[Job], _Learnt]) -> _Learnt:
    """Attempts with parts of half the size for as long as memory runs out and a part has more than a row.

    The size is on disk: a killed training goes on with the one it had come to. Raises CompileError BTC422.
    """
    longest = max(row.tokens for row in (*job.rows, *job.validation))
    size = read_fitting(folder, key) or job.settings.part_tokens
    while True:
        try:
            return attempt(replace(job, settings=replace(job.settings, part_tokens=size)))
        except OutOfMemory as error:
            if size <= longest:
                raise _too_large(job, longest) from error
        reclaim()
        size = max(longest, size // 2)
        write_fitting(folder, key, size)
        progress.say(f"training {job.name} ran out of memory; it starts over with parts of {size} tokens at most")


def _too_large(job: Job, longest: int) -> CompileError:
    settings = job.settings
    remedies = [
        "" if settings.gradient_checkpointing else "`gradient_checkpointing: true`",
        "" if settings.quantize or settings.method == "full" else "`quantize: 4bit`",
        "" if settings.launch else "`launch` with an FSDP `config` of accelerate for several GPUs",
        "shorter rows (`demos: drop`, fewer passages)",
    ]
    return CompileError.of(
        "BTC422",
        f"training `{job.name}` runs out of memory on one row at a time; the longest has {longest} tokens",
        help="use a smaller model, or in `optimize.weights`: " + ", ".join(remedy for remedy in remedies if remedy),
    )


def _encoded(host: WeightHost, row: Row) -> TokenRow:
    ids, start = host.encode_row(row.prompt, row.completion)
    if row.rejected is None:
        return TokenRow(tuple(ids), start)
    others, begin = host.encode_row(row.prompt, row.rejected)
    return TokenRow(tuple(ids), start, TokenRow(tuple(others), begin))


def fast_precision() -> Precision:
    """`bfloat16` where this machine multiplies matrices in it at least 1.5 times as fast as in float32; `float16` where
    it is a GPU without bfloat16 units.

    Measured, so an earlier answer has to be kept for a compile that resumes. On CPUs without bfloat16 units it is
    nine times slower, with them five times faster.
    """
    device = device_name()
    without = device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    narrow: Precision = "float16" if without else "bfloat16"
    return narrow if product_rate(narrow, device) > 1.5 * product_rate("float32", device) else "float32"
