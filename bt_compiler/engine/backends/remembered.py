"""What was measured on this machine, kept in the cache folder so that start-up stays fast and choices stay the same.

Keyed by all that the measurement depends on: the machine's processor, versions, and what the caller adds.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from threading import get_ident
from typing import Any

import torch

from bt_compiler.canonical import digest

_VERSION = 1


def remembered(folder: Path, name: str, key: Any, measure: Callable[[], Any]) -> Any:
    """The JSON value kept for (name, key, machine), measured and kept where there is none."""
    path = folder / "machine" / f"{name}-{digest([_VERSION, key, machine()])[:24]}.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(known, dict) and known.get("version") == _VERSION:
            return known["value"]
    except (FileNotFoundError, ValueError):
        pass
    value = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}-{get_ident()}.part")  # threads of a process may measure at once
    part.write_text(json.dumps({"version": _VERSION, "value": value}), encoding="utf-8")
    part.replace(path)
    return value


def machine() -> list[str]:
    """What decides how this machine computes: processor, its capabilities as torch sees them, threads, versions."""
    return [
        _processor(),
        torch.backends.cpu.get_cpu_capability(),
        torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        str(torch.get_num_threads()),
        version("torch"),
        version("transformers"),
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
