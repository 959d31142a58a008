"""What is trainable: prompts by module and adapters. An optimiser maps candidates to candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DemoOrigin = Literal["bootstrapped", "labelled", "written"]
SHARED = "*"
"""Key in `Candidate.adapters` of the one adapter that serves every module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One worked example in a prompt."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    """Fields of `Module.outputs`; a labelled demo of a `chain_of_thought` may lack `reasoning`."""
    example: str | None = None
    """Id of the example it comes from; None for hand-written ones."""
    origin: DemoOrigin = "bootstrapped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Instructions and demos of one module."""

    instructions: str
    demos: tuple[Demo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Trained weights in a folder (adapter_config.json, adapter_model.safetensors) and what they fit: a LoRA adapter of
    some form in PEFT's layout, or all parameters of the model (`peft_type: FULL`).
    """

    name: str
    """Unique per version; what a remote server knows it by."""
    path: Path = field(compare=False)
    base_model: str
    base_digest: str
    """Digest of the base weights it was trained on."""
    rank: int
    """0: all parameters of the model, which only the embedded engine loads."""
    sha256: str
    """Over tensors and normalised config, so that equal training gives equal digests."""

    @property
    def extent(self) -> str:
        """For people: `rank 32`, or `all parameters`."""
        return f"rank {self.rank}" if self.rank else "all parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point in the search space: the program runs as (program, candidate)."""

    id: str
    prompts: Mapping[str, Prompt]
    """By module name; every module has one."""
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    """By module name, or one under `SHARED`; empty: the base model."""
    parent: str | None = None
    origin: str = "spec"
    """How it came about, for people: `spec`, `step 1 prompts: bootstrapped, seed 3`, `step 2 weights`."""

    def adapter_for(self, module: str) -> Adapter | None:
        """The adapter that the module's calls run on; None is the base model."""
        return self.adapters.get(module) or self.adapters.get(SHARED)
