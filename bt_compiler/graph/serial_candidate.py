"""Candidates as JSON values and back; what `prompts.json` of a bundle holds.

Knows nothing of files but the folder that adapters lie in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bt_compiler.graph.candidate import Adapter, Candidate, Demo, Prompt

SCHEMA = 1
"""Version of the documents of candidates and programs; a reader refuses any other."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


def versioned(data: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """The document. Raises ValueError where another version wrote it."""
    if data.get("schema") != SCHEMA:
        raise ValueError(f"{what} has schema version {data.get('schema')!r}, this version reads {SCHEMA}")
    return data


def prompt_to_json(prompt: Prompt) -> dict[str, Any]:
    """Instructions and demos."""
    return {
        "instructions": prompt.instructions,
        "demos": demos_to_json(prompt.demos),
    }


def demos_to_json(demos: Sequence[Demo]) -> list[dict[str, Any]]:
    """Demos in order."""
    return [
        {
            "inputs": dict(demo.inputs),
            "outputs": dict(demo.outputs),
            "example": demo.example,
            "origin": demo.origin,
        }
        for demo in demos
    ]


def _prompt_from_json(data: Mapping[str, Any]) -> Prompt:
    return Prompt(instructions=data["instructions"], demos=tuple(Demo(**demo) for demo in data["demos"]))


def candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    """The candidate as JSON values; an adapter is named, its folder is left out."""
    return {
        "schema": SCHEMA,
        "id": candidate.id,
        "parent": candidate.parent,
        "origin": candidate.origin,
        "prompts": {name: prompt_to_json(prompt) for name, prompt in candidate.prompts.items()},
        "adapters": {
            key: {
                "name": adapter.name,
                "base_model": adapter.base_model,
                "base_digest": adapter.base_digest,
                "rank": adapter.rank,
                "sha256": adapter.sha256,
            }
            for key, adapter in candidate.adapters.items()
        },
    }


def _adapter_from_json(data: Mapping[str, Any], folder: Path) -> Adapter:
    name = data["name"]
    if not isinstance(name, str) or not _PLAIN_NAME.match(name):
        raise ValueError(f"adapter name {name!r} is not a plain name")
    return Adapter(path=folder / name, **data)


def candidate_from_json(data: Mapping[str, Any], adapters_folder: Path) -> Candidate:
    """The candidate, its adapters at `adapters_folder/<name>`. Raises as `program_from_json`, and ValueError for an
    adapter name that is more than a plain name.
    """
    versioned(data, "the candidate")
    return Candidate(
        id=data["id"],
        parent=data["parent"],
        origin=data["origin"],
        prompts={name: _prompt_from_json(prompt) for name, prompt in data["prompts"].items()},
        adapters={key: _adapter_from_json(item, adapters_folder) for key, item in data["adapters"].items()},
    )
