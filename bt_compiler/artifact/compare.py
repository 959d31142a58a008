"""What changed between two bundles: spec, graph, prompts, adapters, scores, and every example that is scored otherwise.

Compares two verified bundles without a model; of their files it reads the prompt formats alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bt_compiler.artifact.bundle import Bundle
from bt_compiler.canonical import canonical_json
from bt_compiler.engine.statistics import paired_interval
from bt_compiler.engine.trace import Interval
from bt_compiler.graph.program import Program
from bt_compiler.graph.serial_candidate import candidate_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitChange:
    """One split that both bundles were scored on."""

    split: str
    before: float
    after: float
    difference: float | None
    """Of the means over shared examples, after less before; None without any."""
    interval: Interval | None
    """Of that difference."""
    examples: tuple[tuple[str, float, float], ...]
    """(example id, score before, score after) where they differ."""
    shared: int
    """Examples that both were scored on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDiff:
    """The difference of two bundles; everything empty where the digests are equal."""

    same: bool
    facts: tuple[tuple[str, Any, Any], ...]
    """(dotted key, before, after) over spec, models, data, seed and versions."""
    graph_changed: bool
    prompts: Mapping[str, tuple[str, ...]]
    """Module -> unified diff of instructions and demos."""
    formats: Mapping[str, tuple[str, ...]]
    """Module -> unified diff of its prompt format's text."""
    adapters: tuple[tuple[str, str | None, str | None], ...]
    """(slot, sha256 before, sha256 after) where they differ."""
    splits: tuple[SplitChange, ...]


def compare(before: Bundle, after: Bundle) -> BundleDiff:
    """The difference from `before` to `after`."""
    old, new = before.manifest.identity, after.manifest.identity
    keys = ("spec", "models", "data", "retrievers", "tools", "code", "judges", "seed", "versions")
    facts = _leaf_changes({key: old.get(key) for key in keys}, {key: new.get(key) for key in keys})
    old_adapters = {slot: one.sha256 for slot, one in before.candidate.adapters.items()}
    new_adapters = {slot: one.sha256 for slot, one in after.candidate.adapters.items()}
    slots = sorted({*old_adapters, *new_adapters})
    return BundleDiff(
        same=before.manifest.digest == after.manifest.digest,
        facts=tuple(facts),
        graph_changed=_graph(before) != _graph(after),
        prompts=_prompt_changes(before, after),
        formats=_changes(_format_lines(before), _format_lines(after)),
        adapters=tuple(
            (slot, old_adapters.get(slot), new_adapters.get(slot))
            for slot in slots
            if old_adapters.get(slot) != new_adapters.get(slot)
        ),
        splits=tuple(_split_changes(old["scores"], new["scores"])),
    )


def _graph(bundle: Bundle) -> Program:
    """The program without its name and the place of the bundle that it lies in."""
    modules = tuple(replace(one, format=Path(one.format).name) for one in bundle.program.modules)
    return replace(bundle.program, name="", modules=modules)


def _leaf_changes(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for key in sorted({*old, *new})
            for change in _leaf_changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [(path, old, new)]


def _prompt_changes(before: Bundle, after: Bundle) -> dict[str, tuple[str, ...]]:
    old, new = (candidate_to_json(bundle.candidate)["prompts"] for bundle in (before, after))
    return _changes(
        {module: _prompt_lines(prompt) for module, prompt in old.items()},
        {module: _prompt_lines(prompt) for module, prompt in new.items()},
    )


def _prompt_lines(prompt: Mapping[str, Any]) -> list[str]:
    demos = [f"demo: {canonical_json(demo)}" for demo in prompt["demos"]]
    return [*(f"instructions: {line}" for line in str(prompt["instructions"]).splitlines()), *demos]


def _format_lines(bundle: Bundle) -> dict[str, list[str]]:
    paths = {one.name: one.format for one in bundle.program.modules} | dict(bundle.judge_formats)
    return {module: Path(path).read_text(encoding="utf-8").splitlines() for module, path in paths.items()}


def _changes(old: Mapping[str, Sequence[str]], new: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Module -> unified diff, without the two lines that name files, of the modules whose lines differ."""
    found = {}
    for module in sorted({*old, *new}):
        lines = tuple(difflib.unified_diff(old.get(module, ()), new.get(module, ()), lineterm="", n=1))
        if lines:
            found[module] = lines[2:]
    return found


def _split_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[SplitChange]:
    changes = []
    for split in sorted({*old.get("shipped", {})} & {*new.get("shipped", {})}):
        was, now = dict(old["shipped"][split]), dict(new["shipped"][split])
        shared = [example for example in was if example in now]
        first, second = [was[one] for one in shared], [now[one] for one in shared]
        binary = {*first, *second} <= {0, 1}
        changes.append(
            SplitChange(
                split=split,
                before=_mean(was),
                after=_mean(now),
                difference=fmean(second) - fmean(first) if shared else None,
                interval=paired_interval(second, first, binary=binary) if shared else None,
                examples=tuple((one, was[one], now[one]) for one in shared if was[one] != now[one]),
                shared=len(shared),
            )
        )
    return changes


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores) if scores else 0.0
