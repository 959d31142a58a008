"""Training under DeepSpeed's ZeRO, in each of its stages: two real processes on the CPU beside one, and killed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import test_launch as launched
from test_launch import Told, alike, config, members, train
from tiny_host import TinyHost, tiny_model

from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import CompileError
from bt_compiler.optimize.accelerate_config import launch_findings, read_config
from bt_compiler.spec.sections import LaunchSection, OptimizeSection, PreferenceSection, WeightsSection

SETTINGS = replace(launched.SETTINGS, r=3, part_tokens=100)
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed")


def zero(folder: Path, stage: int, *, machines: int = 1, **more: Any) -> LaunchSection:
    """A file as `accelerate config` writes it."""
    settings = {
        "gradient_accumulation_steps": 1,
        "gradient_clipping": SETTINGS.clip,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero3_save_16bit_model": False,
        "zero_stage": stage,
    }
    changes = {"distributed_type": "DEEPSPEED", "fsdp_config": {}, "num_machines": machines}
    return config(folder, **changes, deepspeed_config=settings | more)


def wide() -> TinyHost:
    """Under stage 3 parameters of less than 100,000 numbers are in all processes all the time; here some have more."""
    return TinyHost(tiny_model(hidden_size=320, intermediate_size=401, initializer_range=0.1, tie_word_embeddings=True))


@pytest.mark.parametrize(
    ("stage", "more", "why", "remedy"),
    [
        (0, {}, "`zero_stage: 0` is not supported", "`distributed_type: MULTI_GPU`"),
        (2, {"offload_optimizer_device": "cpu"}, "`offload_optimizer_device: cpu`", "write `none`"),
        (3, {"offload_param_device": "nvme"}, "`offload_param_device: nvme`", "write `none`"),
        (3, {"zero3_init_flag": True}, "`zero3_init_flag: True`", "write `false`"),
        (2, {"gradient_accumulation_steps": 4}, "`gradient_accumulation_steps: 4`", "`part_tokens`"),
        (2, {"deepspeed_config_file": "zero.json"}, "`deepspeed_config_file` of `deepspeed_config`", "take it out"),
        (2, {"machines": 2}, "several machines are to be started from here", "_launcher: standard`"),
    ],
)
def test_what_a_config_asks_of_deepspeed_is_done_or_refused(
    tmp_path: Path, stage: int, more: dict[str, Any], why: str, remedy: str
) -> None:
    launch = zero(tmp_path, stage, **more)
    with pytest.raises(CompileError, match="BTC420") as caught:
        read_config(Path(str(launch.config)))
    assert why in str(caught.value) and remedy in str(caught.value)


def findings(weights: WeightsSection) -> list[Diagnostic]:
    return launch_findings(OptimizeSection(strategy=("weights",), weights=weights))


def test_a_config_that_says_otherwise_than_the_spec_is_found(tmp_path: Path) -> None:
    launch = zero(tmp_path, 3, deepspeed_multinode_launcher="standard")
    assert findings(replace(SETTINGS, launch=launch)) == []
    (clip,) = findings(replace(SETTINGS, launch=launch, clip=0.3))
    assert clip.code == "BTC420" and clip.help == "write `gradient_clipping: 0.3`, or take it out"
    (rounded,) = findings(replace(SETTINGS, launch=launch, quantize="4bit"))
    assert "`quantize` keeps it whole in each" in rounded.message
    assert findings(replace(SETTINGS, launch=zero(tmp_path, 3, gradient_clipping="auto"), clip=0.3)) == []


class Killing(Told):
    """Kills a process of the launch in `folder` after some steps."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def advance(self, units: int = 1, note: str = "") -> None:
        super().advance(units, note)
        if self.steps == 7:
            os.kill(max(members(self._folder)), signal.SIGKILL)


@needs_deepspeed
def test_a_step_of_pairs_is_that_of_one_process(tmp_path: Path) -> None:
    settings = replace(SETTINGS, preference=PreferenceSection())
    expected = train(tmp_path / "one", settings)
    alike(train(tmp_path / "two", replace(settings, launch=zero(tmp_path, 1))), expected)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [(2, {"method": "full", "learning_rate": 1e-3}), (3, {"gradient_checkpointing": True})],
)
def test_a_spread_model_takes_the_steps_of_one_process_and_killed_ends_in_the_same_bytes(
    tmp_path: Path, stage: int, changes: dict[str, Any]
) -> None:
    settings = replace(SETTINGS, **changes)
    launch = zero(tmp_path, stage)
    one = train(tmp_path / "one", settings, host=wide())
    whole = train(tmp_path / "whole", replace(settings, launch=launch), host=wide())
    alike(whole, one)
    assert one.history[-1].train < 0.7 * one.history[0].train
    told = Killing(tmp_path / "killed")
    arguments = {"host": wide(), "progress": told, "checkpoint_seconds": 0.0}
    with pytest.raises(CompileError, match="BTC421"):
        train(tmp_path / "killed", replace(settings, launch=launch), **arguments)
    assert train(tmp_path / "killed", replace(settings, launch=launch), **arguments).history == whole.history
    assert len(told.said) == 1 and told.said[0].startswith("training test goes on after step ")
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "training.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@needs_deepspeed
def test_float16_is_that_of_one_process(tmp_path: Path) -> None:
    expected = train(tmp_path / "one", SETTINGS, host=wide(), precision="float16")
    launch = zero(tmp_path, 3)
    narrow = train(tmp_path / "two", replace(SETTINGS, launch=launch), host=wide(), precision="float16")
    for ours, theirs in zip(narrow.history, expected.history, strict=True):
        assert ours.train == pytest.approx(theirs.train, rel=0.05)
