"""A training run on disk, so that a killed one goes on where it was and ends in the same bytes.

    training/
      checkpoint/        adapter.safetensors, optimizer.safetensors, best.safetensors, state.json
      adapter/           the PEFT folder, once training has ended
      parts.json         where memory ran out: the size of parts that is tried now
      training.json      written last: history and digest of the adapter

A checkpoint is written beside the old one and takes its place by rename. The state of the random generators is not in
it: order and dropout follow from the seed and the position. What is damaged counts as not there: it is made again.
Knows files; tensors pass through as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bt_compiler.canonical import canonical_json

SCHEMA = 1
_CURRENT = "checkpoint"
_WRITTEN = "checkpoint.new"
_FORMER = "checkpoint.old"
_DONE = "training.json"
_FITTING = "parts.json"

Tensors = Mapping[str, Any]
"""Name -> `torch.Tensor`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """One optimiser step."""

    step: int
    """From 1."""
    epoch: int
    """From 1."""
    train: float
    """Mean loss over the completion tokens of the step's rows, in nats; with preference pairs, theirs added."""
    preferred: float | None = None
    """Share of the step's pairs whose accepted completion had gained on the rejected one; None without pairs."""
    validation: float | None = None
    """Mean loss over the validation rows, after the last step of an epoch."""
    probability: float | None = None
    """Mean probability of their completion tokens; what the best epoch is chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far training has come, and all that decides what comes next."""

    epoch: int = 0
    """Epoch under way, from 0."""
    batch: int = 0
    """Batches of it that are done."""
    history: tuple[LossPoint, ...] = ()
    best: float | None = None
    """Highest mean probability of validation tokens so far."""
    best_epoch: int | None = None
    planned: int | None = None
    """Epochs that fit the time given, known after the first; None: all that were asked for."""
    scale: float = 1.0
    """What losses are multiplied by, and gradients divided by again, where those are float16; halved on overflow."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return len(self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Position and tensors."""

    position: Position
    adapter: Tensors
    optimizer: Tensors
    best: Tensors
    """The adapter of `best_epoch`; empty while there is none."""


def write_checkpoint(folder: Path, key: str, checkpoint: Checkpoint) -> None:
    """Replaces the checkpoint in `folder`. `key` says what it is a checkpoint of. Raises OSError."""
    from safetensors.torch import save_file

    new = folder / _WRITTEN
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in ("adapter", "optimizer", "best"):
        path = new / f"{name}.safetensors"
        save_file(dict(getattr(checkpoint, name)), path)
        _flush(path)
    _write_json(new / "state.json", {"schema": SCHEMA, "key": key, "position": asdict(checkpoint.position)})
    current, former = folder / _CURRENT, folder / _FORMER
    shutil.rmtree(former, ignore_errors=True)
    if current.exists():
        current.rename(former)
    new.rename(current)
    _flush(folder)
    shutil.rmtree(former, ignore_errors=True)


def read_checkpoint(folder: Path, key: str) -> Checkpoint | None:
    """The last complete checkpoint of `key`; None where there is none or it is one of something else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name in (_CURRENT, _WRITTEN, _FORMER):
        place = folder / name
        state = _read_json(place / "state.json", key)
        if state is None:
            continue
        stored = state["position"]
        history = tuple(LossPoint(**point) for point in stored.pop("history"))
        with suppress(SafetensorError, FileNotFoundError):
            return Checkpoint(
                position=Position(history=history, **stored),
                adapter=load_file(place / "adapter.safetensors"),
                optimizer=load_file(place / "optimizer.safetensors"),
                best=load_file(place / "best.safetensors"),
            )
    return None


def planned_epochs(folder: Path, key: str) -> int | None:
    """Epochs that fitted the time given, as the last checkpoint of `key` has it; None where it does not say."""
    state = _read_json(folder / _CURRENT / "state.json", key)
    return None if state is None else state["position"]["planned"]


def write_done(folder: Path, key: str, *, sha256: str, history: tuple[LossPoint, ...]) -> None:
    """Marks the training as finished and drops its checkpoint."""
    document = {"schema": SCHEMA, "key": key, "sha256": sha256, "history": [asdict(point) for point in history]}
    _write_json(folder / _DONE, document)
    (folder / _FITTING).unlink(missing_ok=True)
    for name in (_CURRENT, _WRITTEN, _FORMER):
        shutil.rmtree(folder / name, ignore_errors=True)


def read_done(folder: Path, key: str) -> tuple[str, tuple[LossPoint, ...]] | None:
    """(digest of the adapter, history) of a training of `key` that has finished, else None."""
    document = _read_json(folder / _DONE, key)
    if document is None:
        return None
    return document["sha256"], tuple(LossPoint(**point) for point in document["history"])


def write_fitting(folder: Path, key: str, part_tokens: int) -> None:
    """Remembers that the training of `key` needs parts as small as that."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / _FITTING, {"schema": SCHEMA, "key": key, "part_tokens": part_tokens})


def read_fitting(folder: Path, key: str) -> int | None:
    """What `write_fitting` remembered of `key`; None: nothing."""
    document = _read_json(folder / _FITTING, key)
    return None if document is None else int(document["part_tokens"])


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(canonical_json(document), encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def _read_json(path: Path, key: str) -> dict[str, Any] | None:
    """The document of `key`; None where there is none, or it is damaged or one of something else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(document, dict) or (document.get("schema"), document.get("key")) != (SCHEMA, key):
        return None
    return document


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
