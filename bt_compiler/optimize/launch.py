"""Training in processes that `accelerate launch` starts, from the side of the process that waits for them.

    launch/job.json         the job, where the base model lies, and where checkpoints go
    launch/progress.jsonl   what the first process tells: begin, advance, say
    launch/output.txt       all that the processes print
    launch/outcome-N.json   written by process N when it ends: the history of losses, or what went wrong

All in the training's folder, which machines of one launch share. The processes hold the other end of a pipe and end
when this one does, however it ends; checkpoints are theirs, and a next launch goes on from the last. Knows files and
processes; nothing of tensors.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bt_compiler.canonical import canonical_json
from bt_compiler.engine.backends.memory import OutOfMemory
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import BaseFolder
from bt_compiler.errors import CompileError
from bt_compiler.optimize.accelerate_config import PLAIN, AccelerateConfig, read_config
from bt_compiler.optimize.checkpoint import LossPoint
from bt_compiler.optimize.training_job import Job
from bt_compiler.optimize.training_run import Store
from bt_compiler.spec.sections import LaunchSection

FOLDER = "launch"
WATCHED = "BTC_LAUNCHER_WATCHES"
"""Variable that tells a process that its standard input ends with the process that waits for it."""
_ON_CPU = "ACCELERATE_USE_CPU"
_MODULE = "bt_compiler.optimize.launched"
_POLL = 0.1
"""Seconds between two looks at the processes."""
_GRACE = 10.0
"""Seconds they have to end once they were told."""
_LAST_LINES = 12


def launched(
    job: Job, launch: LaunchSection, base: BaseFolder, store: Store, progress: Progress
) -> tuple[LossPoint, ...]:
    """Trains as `learn` does, the adapter's folder included, in the processes of `launch`.

    Raises OutOfMemory, what `learn` raises, and CompileError: BTC420 the config cannot be used, BTC421 a process died.
    """
    folder = store.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = None if launch.config is None else read_config(Path(launch.config))
    document = {
        "job": job.to_json(),
        "base": {"path": str(base.path), "dtype": base.dtype},
        "processes": launch.processes if config is None else config.processes,
        "store": {"folder": str(store.folder.absolute()), "key": store.key, "seconds": min(store.seconds, 1e9)},
    }
    (folder / "job.json").write_text(canonical_json(document), encoding="utf-8")
    command = _command(launch, config, folder)
    if config is not None and config.machines > 1:
        progress.say(_elsewhere(config, command))
    with _running(command, folder, on_cpu=config is not None and config.on_cpu) as process:
        told = _Told(folder / "progress.jsonl", progress)
        while process.poll() is None:
            told.forward()
            time.sleep(_POLL)
        told.forward()
    history = _outcome(folder, job.name, process.returncode)
    shutil.rmtree(folder)
    return history


def _command(launch: LaunchSection, config: AccelerateConfig | None, folder: Path) -> list[str]:
    """What follows `accelerate launch`; `--multi_gpu` is its word for several processes, on CPUs too."""
    if config is None:
        count = launch.processes or 1
        threads = max(1, torch.get_num_threads() // count)
        command = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        command += ["--num_processes", str(count), "--num_cpu_threads_per_process", str(threads)]
        several = count > 1
    else:
        command = ["--config_file", str(config.path)]
        several = config.kind in PLAIN and config.processes > 1
    if several:
        command.append("--multi_gpu")
    if config is None or (config.port is None and config.machines == 1):
        command += ["--main_process_port", "0"]
    return [*command, "-m", _MODULE, str(folder.absolute())]


def _elsewhere(config: AccelerateConfig, command: Sequence[str]) -> str:
    """What the user has to start on the other machines."""
    words = ["accelerate", "launch", "--machine_rank", "N", *command]
    if config.on_cpu:
        words = [f"{_ON_CPU}=true", *words]
    return (
        f"training waits for {config.machines - 1} more of {config.machines} machines; on machine N of them, with "
        f"these files shared: {shlex.join(words)}"
    )


@contextmanager
def _running(command: list[str], folder: Path, *, on_cpu: bool) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher; on leaving it and all that it started have ended."""
    environment = {**os.environ, WATCHED: "1", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu or not torch.cuda.is_available():
        environment[_ON_CPU] = "true"
    with (folder / "output.txt").open("wb") as output:
        launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        process = subprocess.Popen(
            [*launcher, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()  # what the processes watch
        try:
            process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Told:
    """Hands on what the first process writes, line by line."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._read = 0

    def forward(self) -> None:
        """All whole lines since the last time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            what, *arguments = json.loads(line)
            getattr(self._progress, what)(*arguments)  # a method of `Progress`, as the launched process named it


def _outcome(folder: Path, name: str, returncode: int) -> tuple[LossPoint, ...]:
    """The history, if all went well."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("outcome-*.json"))]
    if any(outcome["kind"] == "out of memory" for outcome in found):
        raise OutOfMemory
    for outcome in found:
        if outcome["kind"] == "error":
            raise CompileError.of(outcome["code"], outcome["message"], help=outcome["help"])
    history = next((outcome["history"] for outcome in found if outcome["kind"] == "history"), None)
    if returncode != 0 or history is None:
        raise _died(folder, name, returncode)
    return tuple(LossPoint(**point) for point in history)


def _died(folder: Path, name: str, returncode: int) -> CompileError:
    text = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return CompileError.of(
        "BTC421",
        f"a process of training `{name}` under `accelerate launch` died ({how})",
        notes=[*_last_words(text), f"all that was printed is in {folder / 'output.txt'}"],
        help="the same command goes on from the last checkpoint; leave `optimize.weights.launch` out to train in one "
        "process",
    )


def _last_words(text: str) -> list[str]:
    """The last lines that a process printed, and what the launcher says of its end without its own traceback."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    ends = (index for index, line in enumerate(lines) if "elastic/" in line and "failed (exitcode" in line)
    return lines[: next(ends, len(lines)) + 1][-_LAST_LINES:]


def outcome_of(kind: str, **facts: Any) -> Mapping[str, Any]:
    """What a process writes when it ends: `history`, `error` or `out of memory`."""
    return {"kind": kind, **facts}
