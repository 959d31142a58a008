"""Training under `accelerate launch`: two real processes on the CPU beside one, killed, failing and spread by FSDP."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_host import TinyHost, pairs, rows

from bt_compiler.errors import CompileError
from bt_compiler.optimize.accelerate_config import launch_digest, read_config
from bt_compiler.optimize.trainer import Training, train_adapter
from bt_compiler.spec.sections import LaunchSection, PreferenceSection, WeightsSection

# `clip` lies among the norms of the gradients: Adam alone would not show that they were averaged and not summed
SETTINGS = WeightsSection(r=4, alpha=8, epochs=3, learning_rate=5e-3, batch=5, warmup=2, clip=4.0)
TWO = LaunchSection(processes=2)


def train(folder: Path, settings: WeightsSection, **more: Any) -> Training:
    arguments = {"host": TinyHost(), "rows": rows(16) + pairs(3), "validation": rows(5, 16), "seed": 1} | more
    return train_adapter(settings=settings, folder=folder, name="test", **arguments)


def config(folder: Path, **changes: Any) -> LaunchSection:
    """A file as `accelerate config` writes it; YAML reads JSON."""
    content = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": True},
        "machine_rank": 0,
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 2,
        "use_cpu": True,
    }
    path = folder / "accelerate.yaml"
    path.write_text(json.dumps(content | changes))
    return LaunchSection(config=str(path))


def test_what_a_config_says_decides_whether_a_training_is_the_same(tmp_path: Path) -> None:
    assert launch_digest(LaunchSection(processes=2)) != launch_digest(LaunchSection(processes=3))
    (tmp_path / "elsewhere").mkdir()
    said = launch_digest(config(tmp_path))
    assert launch_digest(config(tmp_path / "elsewhere")) == said
    assert launch_digest(config(tmp_path, num_processes=4)) != said


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"distributed_type": "MEGATRON_LM"}, "`distributed_type: MEGATRON_LM` is none"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "starts no processes from here"),
        ({"mixed_precision": "fp8"}, "`mixed_precision: fp8`"),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "`parallelism_config`"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}, "`fsdp_offload_params`"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}}, "`gradient_checkpointing: true`"),
        ({"fsdp_config": [2]}, "`fsdp_config` holds no settings"),
    ],
)
def test_what_a_config_asks_for_is_done_or_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    launch = config(tmp_path, **changes)
    with pytest.raises(CompileError, match="BTC420") as caught:
        read_config(Path(str(launch.config)))
    assert why in str(caught.value)


def alike(found: Training, expected: Training) -> None:
    """Equal but for the order of sums."""
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert (ours.step, ours.epoch, ours.preferred) == (theirs.step, theirs.epoch, theirs.preferred)
        assert ours.train == pytest.approx(theirs.train, rel=1e-3)
        assert ours.validation == (None if theirs.validation is None else pytest.approx(theirs.validation, rel=1e-3))
    mine, whole = (load_file(one.adapter.path / "adapter_model.safetensors") for one in (found, expected))
    assert mine.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.allclose(mine[name], value, rtol=1e-2, atol=1e-3), name
    for name in ("adapter_config.json",):
        assert (found.adapter.path / name).read_bytes() == (expected.adapter.path / name).read_bytes()


@pytest.mark.parametrize("preference", [None, PreferenceSection()])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, preference: PreferenceSection | None) -> None:
    settings = replace(SETTINGS, preference=preference)
    expected = train(tmp_path / "one", settings)
    assert expected.history[-1].train < 0.7 * expected.history[0].train
    alike(train(tmp_path / "two", replace(settings, launch=TWO)), expected)
    assert sorted(entry.name for entry in (tmp_path / "two").iterdir()) == ["adapter", "training.json"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_model_spread_by_fsdp_takes_the_steps_of_one_process(tmp_path: Path, method: Any) -> None:
    rate = 1e-3 if method == "full" else 5e-3
    settings = replace(SETTINGS, method=method, learning_rate=rate, part_tokens=60, gradient_checkpointing=True)
    expected = train(tmp_path / "one", settings)
    alike(train(tmp_path / "two", replace(settings, launch=config(tmp_path))), expected)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_launch import KILLED
from tiny_host import TinyHost, rows
from bt_compiler.optimize.accelerate_config import launch_digest, read_config
from bt_compiler.optimize.trainer import train_adapter

if __name__ == "__main__":
    train_adapter(host=TinyHost(), rows=rows(16), validation=rows(4, 16), settings=KILLED, seed=3,
                  folder=Path(sys.argv[1]), name="child", checkpoint_seconds=0.0)
"""
KILLED = replace(SETTINGS, epochs=12, dropout=0.1, noise=5.0, launch=TWO)


def start(folder: Path) -> subprocess.Popen[bytes]:
    code = CHILD.format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.PIPE)


def steps_done(folder: Path) -> int:
    for name in ("checkpoint", "checkpoint.old"):
        try:
            return len(json.loads((folder / name / "state.json").read_text())["position"]["history"])
        except OSError:
            continue
    return 0


def members(folder: Path) -> list[int]:
    """Processes of the launch in `folder`, by what the system says they run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(folder / "launch").encode() in command:
            found.append(int(entry.name))
    return found


def wait_until(true: Any) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < 60
        time.sleep(0.01)


@pytest.mark.slow
def test_a_launch_killed_at_any_place_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    folder = tmp_path / "killed"
    running = start(folder)
    wait_until(lambda: steps_done(folder) > 2)
    os.kill(running.pid, signal.SIGKILL)  # who waits
    running.communicate(timeout=60)
    wait_until(lambda: not members(folder))
    assert not (folder / "training.json").exists()
    running = start(folder)
    done = steps_done(folder)
    wait_until(lambda: steps_done(folder) > done + 2)
    os.kill(max(members(folder)), signal.SIGKILL)  # one of those who train
    _, told = running.communicate(timeout=60)
    assert running.returncode == 1
    assert b"error[BTC421]: a process of training `child` under `accelerate launch` died" in told
    assert b"failed (exitcode: -9)" in told and b"the same command goes on from the last checkpoint" in told
    assert not members(folder) and not (folder / "training.json").exists()
    for last in (whole, start(folder)):
        _, told = last.communicate(timeout=120)
        assert last.returncode == 0, told.decode()
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "training.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"learning_rate": 1e30, "warmup": 0}, "BTC402"), ({"target_modules": ("nothing",)}, "BTC403")],
)
def test_what_goes_wrong_in_a_process_is_the_same_error_here(tmp_path: Path, changes: Any, code: str) -> None:
    settings = replace(SETTINGS, **changes)
    with pytest.raises(CompileError, match=code) as alone:
        train(tmp_path / "one", settings)
    with pytest.raises(CompileError, match=code) as together:
        train(tmp_path / "two", replace(settings, launch=TWO))
    assert together.value.diagnostics == alone.value.diagnostics
    assert not (tmp_path / "two" / "training.json").exists()


class Told:
    """Remembers progress."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int | None]] = []
        self.steps = 0
        self.said: list[str] = []

    def begin(self, label: str, total: int | None) -> None:
        self.begun.append((label, total))

    def advance(self, units: int = 1, note: str = "") -> None:
        self.steps += units

    def spare(self, units: int, note: str) -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


def test_half_precision_and_progress_come_through_a_config(tmp_path: Path) -> None:
    told = Told()
    launch = config(tmp_path, distributed_type="MULTI_CPU", fsdp_config={}, mixed_precision="bf16")
    narrow = train(tmp_path / "two", replace(SETTINGS, launch=launch), progress=told)
    assert told.begun == [("training test", 12)] and told.steps == 12
    expected = train(tmp_path / "one", SETTINGS, precision="bfloat16")
    for ours, theirs in zip(narrow.history, expected.history, strict=True):
        assert ours.train == pytest.approx(theirs.train, rel=0.05)
    assert narrow.history != train(tmp_path / "wide", SETTINGS).history


@pytest.mark.slow
def test_two_machines_take_the_steps_of_one_process(tmp_path: Path) -> None:
    """Both are this one; the second is started by the command that the first asks for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    class Joining(Told):
        def say(self, line: str) -> None:
            variable, _, _, *command = shlex.split(line.partition("files shared: ")[2])
            name, _, value = variable.partition("=")
            command = [str(1) if word == "N" else word for word in command]
            self.other = subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *command],
                env={**os.environ, name: value},
                stdin=subprocess.DEVNULL,
            )

    meeting = {"num_machines": 2, "main_process_ip": "127.0.0.1", "main_process_port": port, "same_network": True}
    launch = config(tmp_path, distributed_type="MULTI_CPU", fsdp_config={}, rdzv_backend="static", **meeting)
    told = Joining()
    together = train(tmp_path / "two", replace(SETTINGS, launch=launch), progress=told)
    assert told.other.wait(timeout=60) == 0
    alike(together, train(tmp_path / "one", SETTINGS))
