"""`manifest.json`: all of a bundle's facts, and the hashes by which the other files are believed.

Knows the shape of the file and its own hash; the other files are read and hashed in `bundle`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bt_compiler.artifact.contents import Ancestor, ModelFacts
from bt_compiler.canonical import canonical_json, digest
from bt_compiler.engine.request import Backend
from bt_compiler.errors import BundleError
from bt_compiler.spec.optimizing import REMOTE_ENGINES

SCHEMA_VERSION = 1
INDEXES = "indexes"
"""Folder of carried indexes in a bundle, each in a folder named by its retriever's digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of a bundle. What is inside the digest is in `identity`, the rest is shown and not compared."""

    name: str
    digest: str
    """The bundle digest (`digest.py`)."""
    identity: Mapping[str, Any]
    """`digest.identity_of`: spec identity, seed, models, data, retrievers, tools and the code of installed ones, where
    the formats of judges are, versions, per-example scores."""
    adapters: Mapping[str, str]
    """Adapter name -> sha256 over tensors and normalised config."""
    models: Mapping[str, ModelFacts]
    """By name in the spec, with the engine's own facts."""
    strategy: tuple[str, ...]
    """Steps that were run; which prefix of them is shipped shows in `lineage`."""
    lineage: tuple[Ancestor, ...]
    rows: Mapping[str, int]
    """Source -> training rows behind the shipped weights, those of a step that others learnt from among them."""
    scores: Mapping[str, Mapping[str, Any]]
    """`zero_shot` and `shipped` by split, each `{mean, low, high, level, method, n, failures}`; and `difference`."""
    created: str | None
    seconds: float
    fixed_parts: bool
    environment: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    """By path within the bundle, `/` between the parts; the manifest itself is not among them."""
    schema_version: int = SCHEMA_VERSION

    @property
    def seed(self) -> int:
        """The seed of the compile."""
        return int(self.identity["seed"])

    @property
    def indexes(self) -> frozenset[str]:
        """Digests of the retrieval indexes that the bundle carries."""
        parts = [path.split("/") for path in self.files]
        return frozenset(part[1] for part in parts if part[0] == INDEXES and len(part) == 3)

    def to_json(self) -> dict[str, Any]:
        """The document as written, its own hash included."""
        document = {
            "schema_version": self.schema_version,
            "name": self.name,
            "digest": self.digest,
            "identity": dict(self.identity),
            "adapters": dict(self.adapters),
            "strategy": list(self.strategy),
            "lineage": [{"id": one.id, "parent": one.parent, "origin": one.origin} for one in self.lineage],
            "rows": dict(self.rows),
            "scores": {who: dict(by_split) for who, by_split in self.scores.items()},
            "integrity": {
                "engine_facts": {name: dict(model.facts) for name, model in self.models.items()},
                "created": self.created,
                "seconds": self.seconds,
                "fixed_parts": self.fixed_parts,
                "environment": dict(self.environment),
                "files": {path: {"sha256": one.sha256, "size": one.size} for path, one in self.files.items()},
            },
        }
        plain = json.loads(canonical_json(document))  # tuples and number keys as a reader will see them
        return {**plain, "manifest_sha256": digest(plain)}

    @classmethod
    def from_json(cls, data: Any, *, path: Path) -> Self:
        """The manifest of a parsed document; `path` is for messages.

        Raises BundleError: BTC552 for a newer schema version, BTC551 for anything that is no manifest or has changed.
        """
        if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
            raise damaged(path, "it has no schema version")
        version = data["schema_version"]
        if version > SCHEMA_VERSION:
            raise BundleError.of(
                "BTC552",
                f"`{path}` has schema version {version}, this program reads up to {SCHEMA_VERSION}",
                help="a newer `btc` wrote this bundle: update with `pip install --upgrade bt-compiler`",
            )
        document = {key: value for key, value in data.items() if key != "manifest_sha256"}
        if data.get("manifest_sha256") != digest(document):
            raise damaged(path, "its content does not fit its own hash")
        try:
            return cls._read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"it lacks what a manifest has: {type(error).__name__} {error}") from error

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> Self:
        extra = data["integrity"]
        facts = extra["engine_facts"]
        return cls(
            schema_version=data["schema_version"],
            name=str(data["name"]),
            digest=str(data["digest"]),
            identity={**data["identity"]},
            adapters={str(name): str(sha) for name, sha in data["adapters"].items()},
            models={
                name: ModelFacts(**model, facts=facts.get(name, {}))
                for name, model in data["identity"]["models"].items()
            },
            strategy=tuple(data["strategy"]),
            lineage=tuple(Ancestor(**one) for one in data["lineage"]),
            rows={str(source): int(count) for source, count in data.get("rows", {}).items()},
            scores={**data["scores"]},
            created=extra["created"],
            seconds=float(extra["seconds"]),
            fixed_parts=bool(extra["fixed_parts"]),
            environment={**extra["environment"]},
            files={
                str(path): FileEntry(sha256=str(one["sha256"]), size=int(one["size"]))
                for path, one in extra["files"].items()
            },
        )


def damaged(path: Path, why: str) -> BundleError:
    """BTC551."""
    return BundleError.of(
        "BTC551",
        f"`{path}` is not a manifest that can be read: {why}",
        help="the bundle was changed or cut short after it was written: compile again or copy it again",
    )


def check_base(manifest: Manifest, backend: Backend, *, model: str = "default") -> None:
    """Sees that `backend` runs the base weights that the bundle was compiled on.

    A remote's weights cannot be seen: there the adapter that answers is the backend's to verify, and another id is told
    (`changed_model`). Raises BundleError
    (BTC558) where the digests differ.
    """
    expected = manifest.models.get(model)
    if expected is None or expected.digest is None or backend.name in REMOTE_ENGINES:
        return
    found = backend.identity().get("model")
    if found is not None and found != expected.digest:
        raise BundleError.of(
            "BTC558",
            f"model `{model}` of bundle `{manifest.name}` was compiled on `{expected.id}` with digest "
            f"{expected.digest[:12]}, the one opened has {found[:12]}",
            help="point `model.id` to the same weights and revision, or compile again on these",
        )
