"""One process of a launched training: `accelerate launch -m bt_compiler.optimize.launched FOLDER/launch`.

Takes its place among the others, loads the base model and trains with all of them; the first one writes. How it ends is
in a file of its own (`launch`). Knows how processes find each other; nothing of steps and losses.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.backends.loading import load_base
from bt_compiler.engine.backends.memory import OutOfMemory
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.errors import BtcError
from bt_compiler.optimize.accelerate_config import ZERO_STAGE
from bt_compiler.optimize.crew import Crew
from bt_compiler.optimize.launch import WATCHED, outcome_of
from bt_compiler.optimize.learning import learn
from bt_compiler.optimize.sharded import sharded
from bt_compiler.optimize.stepping import Spread, Steps
from bt_compiler.optimize.training_job import Job, Precision, job_from_json
from bt_compiler.optimize.training_run import Store

_PRECISIONS: Mapping[str, Precision] = {"bf16": "bfloat16", "fp16": "float16"}
"""accelerate's `mixed_precision` -> ours; `no` leaves it to what was measured."""


def main(folder: Path) -> int:
    """Trains the job in `folder`; the exit code is 0 where all went well."""
    if WATCHED in os.environ:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    document = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    state = PartialState(cpu=_flag("ACCELERATE_USE_CPU"))
    if state.num_processes != document["processes"]:
        raise RuntimeError(
            f"{document['processes']} processes were to train, and {state.num_processes} found each other"
        )
    try:
        history = _trained(document, state, folder)
    except OutOfMemory:
        outcome = outcome_of("out of memory")
    except BtcError as error:
        first = error.diagnostics[0]
        outcome = outcome_of("error", code=first.code, message=first.message, help=first.help)
    else:
        outcome = outcome_of("history", history=[asdict(point) for point in history])
    path = folder / f"outcome-{state.process_index}.json"
    written = path.with_suffix(".new")
    written.write_text(canonical_json(outcome), encoding="utf-8")
    written.replace(path)
    if outcome["kind"] == "history":
        state.destroy_process_group()
        return 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # an orderly end waits for processes that may wait for this one


def _trained(document: Mapping[str, Any], state: PartialState, folder: Path) -> Any:
    job = _with_precision(job_from_json(document["job"]))
    device = "cpu" if state.device.type == "cpu" else str(state.device)
    spread = _spread(device)
    lockstep = spread is not Steps
    crew = Crew(rank=state.process_index, size=state.num_processes, lockstep=lockstep, device=device)
    store = Store(
        folder=Path(document["store"]["folder"]),
        key=document["store"]["key"],
        seconds=document["store"]["seconds"],
        clock=time.monotonic,
    )
    model = load_base(
        Path(document["base"]["path"]),
        dtype=document["base"]["dtype"],
        device="cpu" if lockstep else device,  # a share goes to the device, never the whole
        in_4bit=job.settings.quantize is not None,
    )
    progress: Progress = _Teller(folder / "progress.jsonl") if crew.writes else Silent()
    return learn(model, job, store, progress=progress, crew=crew, spread=spread)


def _spread(device: str) -> Spread:
    """How the launch spreads the model, by the variables that `accelerate launch` sets."""
    if _flag("ACCELERATE_USE_FSDP"):
        return partial(sharded, reshard=_flag("FSDP_RESHARD_AFTER_FORWARD"))
    if not _flag("ACCELERATE_USE_DEEPSPEED"):
        return Steps
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else it takes a GPU where there is one
    from bt_compiler.optimize.zero import ZeroSteps

    return partial(ZeroSteps, stage=int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", ZERO_STAGE)))


def _with_precision(job: Job) -> Job:
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return replace(job, precision=_PRECISIONS.get(asked, job.precision))


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes", "full_shard")


def _end_with_launcher() -> None:
    """Ends this process when the one that waits for it is gone, even where that was killed."""
    while os.read(0, 1024):  # not through `sys.stdin`, which a thread must not hold when Python ends
        pass
    os._exit(1)


class _Teller:
    """`Progress` as lines of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, label: str, total: int | None) -> None:
        """See `Progress.begin`."""
        self._write("begin", label, total)

    def advance(self, units: int = 1, note: str = "") -> None:
        """See `Progress.advance`."""
        self._write("advance", units, note)

    def spare(self, units: int, note: str) -> None:
        """See `Progress.spare`."""
        self._write("spare", units, note)

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._write("say", line)

    def _write(self, *event: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(canonical_json(list(event)) + "\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
