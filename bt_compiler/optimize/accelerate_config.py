"""`optimize.weights.launch`, read: what of a config file of `accelerate` the trainer takes over, and what it cannot.

Imports neither torch nor accelerate, so that `btc check` can say what is wrong. Knows the keys that `accelerate config`
writes (accelerate 1.15); nothing of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bt_compiler.canonical import digest
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import CompileError
from bt_compiler.spec.sections import LaunchSection, OptimizeSection, WeightsSection

PLAIN = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Kinds of config in which every process has the whole model."""
FSDP = "FSDP"
DEEPSPEED = "DEEPSPEED"
SHARDED = (FSDP, DEEPSPEED)
"""Kinds that spread it."""
ZERO_STAGE = 2
"""DeepSpeed's, where the file does not say."""


class _Taken(NamedTuple):
    """What a key may say."""

    values: tuple[Any, ...]
    help: str


_IN_MEMORY = _Taken((None, "none"), "write `none`: nothing is moved off the devices; more of them hold a larger model")
_DEEPSPEED: Mapping[str, _Taken] = {
    "zero_stage": _Taken((1, 2, 3), "write 1, 2 or 3; what stage 0 does is `distributed_type: MULTI_GPU`"),
    "gradient_accumulation_steps": _Taken(
        (1, "auto"), "write 1: `batch` of `optimize.weights` is a whole step, and `part_tokens` cuts it into passes"
    ),
    "offload_optimizer_device": _IN_MEMORY,
    "offload_param_device": _IN_MEMORY,
    "zero3_init_flag": _Taken((None, False), "write `false`: what was loaded is spread, parameter by parameter"),
    "deepspeed_multinode_launcher": _Taken(
        ("standard",), "write `deepspeed_multinode_launcher: standard`: each machine starts its own processes"
    ),
}
"""Keys of `deepspeed_config` on which something depends, by the names of accelerate."""
_DEEPSPEED_FREE = ("gradient_clipping", "zero3_save_16bit_model")
"""Keys of it that are judged by the spec, or about files that are not written."""
_LEFT = "`zero_stage` says how the model is spread, and `optimize.weights` all else"


class Misfit(NamedTuple):
    """Something in a config that the trainer cannot do."""

    message: str
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccelerateConfig:
    """What a config file says."""

    path: Path
    kind: str = "NO"
    machines: int = 1
    processes: int = 1
    """On all machines together."""
    on_cpu: bool = False
    """Even where there are GPUs."""
    port: int | None = None
    """Where the processes meet; None: any that is free."""
    content: Mapping[str, Any]


def read_config(path: Path) -> AccelerateConfig:
    """The file of `launch.config`. Raises CompileError BTC420 where it is none, or asks for what cannot be done."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise _refused(path, Misfit(f"it cannot be read: {why}", "write one with `accelerate config`")) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise _refused(path, Misfit("it is no YAML", "write it anew with `accelerate config`")) from error
    if not isinstance(content, Mapping) or "distributed_type" not in content:
        raise _refused(path, Misfit("it has no `distributed_type`", "write one with `accelerate config`"))
    misfit = next(_misfits(content), None)
    if misfit is not None:
        raise _refused(path, misfit)
    return AccelerateConfig(
        path=path,
        kind=str(content["distributed_type"]),
        machines=int(content.get("num_machines") or 1),
        processes=int(content.get("num_processes") or 1),
        on_cpu=bool(content.get("use_cpu")),
        port=content.get("main_process_port"),
        content=content,
    )


def launch_digest(launch: LaunchSection) -> str:
    """Of how work is spread over processes. Raises CompileError BTC420."""
    if launch.config is None:
        return digest(["processes", launch.processes])
    return digest(["config", read_config(Path(launch.config)).content])


def launch_findings(optimize: OptimizeSection) -> list[Diagnostic]:
    """What is wrong with how weights steps are launched; BTC420."""
    launch = optimize.weights.launch
    if "weights" not in optimize.strategy or launch is None or launch.config is None:
        return []
    try:
        config = read_config(Path(launch.config))
    except CompileError as error:
        return list(error.diagnostics)
    misfit = _settings_misfit(config, optimize.weights)
    return [] if misfit is None else list(_refused(config.path, misfit).diagnostics)


def by_deepspeed(launch: LaunchSection) -> bool:
    """Whether processes launched so need the package deepspeed. Raises CompileError BTC420."""
    return launch.config is not None and read_config(Path(launch.config)).kind == DEEPSPEED


def _settings_misfit(config: AccelerateConfig, weights: WeightsSection) -> Misfit | None:
    """What the file says otherwise than the spec that names it."""
    if config.kind in SHARDED and weights.quantize is not None:
        return Misfit(
            "it spreads the model over processes, and `quantize` keeps it whole in each",
            "take `quantize` out of `optimize.weights`, or launch with `processes: N`",
        )
    settings = config.content.get("deepspeed_config") or {}
    clip = settings.get("gradient_clipping", "auto")
    if config.kind == DEEPSPEED and clip not in ("auto", weights.clip):
        return Misfit(
            f"`gradient_clipping: {clip}` is not `optimize.weights.clip`, which is {weights.clip:g}",
            f"write `gradient_clipping: {weights.clip:g}`, or take it out",
        )
    return None


def _misfits(content: Mapping[str, Any]) -> Iterator[Misfit]:
    """In the order of their weight."""
    kind = content["distributed_type"]
    if kind not in (*PLAIN, *SHARDED):
        names = ", ".join(f"`{name}`" for name in (*PLAIN, *SHARDED))
        yield Misfit(f"`distributed_type: {kind}` is none that training runs under", f"use one of {names}")
    if content.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        yield Misfit(
            f"`compute_environment: {content['compute_environment']}` starts no processes from here",
            "write `compute_environment: LOCAL_MACHINE`, on several machines too",
        )
    if content.get("mixed_precision") == "fp8":
        yield Misfit("`mixed_precision: fp8` is not supported", "write `no`, `bf16` or `fp16`")
    if content.get("parallelism_config"):
        yield Misfit("`parallelism_config` is not supported", "take it out: rows and parameters can be spread")
    name = {FSDP: "fsdp_config", DEEPSPEED: "deepspeed_config"}.get(kind)
    settings = {} if name is None else content.get(name) or {}
    if not isinstance(settings, Mapping):
        yield Misfit(f"`{name}` holds no settings", "write the file anew with `accelerate config`")
    elif kind == FSDP:
        yield from _fsdp_misfits(settings)
    elif kind == DEEPSPEED:
        yield from _deepspeed_misfits(settings)
        if content.get("num_machines", 1) != 1 and "deepspeed_multinode_launcher" not in settings:
            yield Misfit(
                "several machines are to be started from here", _DEEPSPEED["deepspeed_multinode_launcher"].help
            )


def _fsdp_misfits(settings: Mapping[str, Any]) -> Iterator[Misfit]:
    if str(settings.get("fsdp_version", 1)) != "2":
        yield Misfit(
            "FSDP is asked for in its first version", "`accelerate to-fsdp2 --config_file FILE --overwrite` rewrites it"
        )
    if settings.get("fsdp_offload_params"):
        yield Misfit("`fsdp_offload_params` is not supported", "write `fsdp_offload_params: false`")
    if settings.get("fsdp_activation_checkpointing"):
        yield Misfit(
            "`fsdp_activation_checkpointing` is not read",
            "write `false`, and `gradient_checkpointing: true` in `optimize.weights`",
        )


def _deepspeed_misfits(settings: Mapping[str, Any]) -> Iterator[Misfit]:
    for key, value in settings.items():
        known = _DEEPSPEED.get(key)
        if known is None and key not in _DEEPSPEED_FREE:
            yield Misfit(f"`{key}` of `deepspeed_config` is not read", "take it out: " + _LEFT)
        elif known is not None and value not in known.values:
            yield Misfit(f"`{key}: {value}` is not supported", known.help)


def _refused(path: Path, misfit: Misfit) -> CompileError:
    return CompileError.of("BTC420", f"`{path}` cannot launch training: {misfit.message}", help=misfit.help)
