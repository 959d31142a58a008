"""The bundle digest: one hash over all that decides how a bundle behaves, and over how it scored.

Inside: program, prompts, formats, adapter tensors and normalised config, spec identity, data and corpus digests,
seed, models with dtype, package versions, code of installed tools and metrics, per-example scores. Outside, hashed for
integrity alone: the resolved spec with its paths, reports, timings, call counts, dates, endpoints, the machine. Two
compiles of one spec on one data set are the same compile exactly where this digest is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bt_compiler.artifact.contents import BundleContents, ModelFacts
from bt_compiler.artifact.format_files import format_files
from bt_compiler.canonical import digest
from bt_compiler.engine.trace import Report
from bt_compiler.graph.candidate import Candidate

DIGEST_VERSION = 1
"""Part of the digest: another definition gives other digests, never the same one with another meaning."""


def bundle_digest(
    *, program: Any, prompts: Any, formats: Mapping[str, str], adapters: Mapping[str, str], identity: Mapping[str, Any]
) -> str:
    """SHA-256 in hex.

    `program` and `prompts` are the JSON values of `program.json` and `prompts.json`, `formats` format file -> text,
    `adapters` adapter name -> `adapter_digest`, `identity` what `identity_of` gives.
    """
    return digest(
        {
            "version": DIGEST_VERSION,
            "program": program,
            "prompts": prompts,
            "formats": dict(formats),
            "adapters": dict(adapters),
            "identity": dict(identity),
        }
    )


def identity_of(contents: BundleContents) -> dict[str, Any]:
    """The facts of a compile that have no file of their own in the bundle but belong in the digest, as JSON values."""
    return {
        "spec": dict(contents.spec_identity),
        "seed": contents.seed,
        "models": {name: _model(model) for name, model in contents.models.items()},
        "data": {name: {"examples": facts.examples, "digest": facts.digest} for name, facts in contents.data.items()},
        "retrievers": dict(contents.retrievers),
        **({"tools": dict(contents.tools)} if contents.tools else {}),
        **({"code": {what: dict(by_name) for what, by_name in contents.code.items()}} if contents.code else {}),
        **({"judges": _judge_files(contents)} if contents.judges else {}),
        "versions": dict(contents.versions),
        "scores": {
            who: {split: per_example(report) for split, report in by_split.items()}
            for who, by_split in contents.reports.items()
        },
    }


def _judge_files(contents: BundleContents) -> dict[str, str]:
    """Judge -> path of its format in the bundle: judges are no part of the program, which says so of its modules."""
    files = format_files(contents.formats)
    return {name: files[format] for name, format in contents.judges.items()}


def _model(model: ModelFacts) -> dict[str, Any]:
    return {
        "id": portable_model(model.id),
        "engine": model.engine,
        "revision": model.revision,
        "digest": model.digest,
        "dtype": model.dtype,
    }


def portable_model(id: str) -> str:
    """The id of a model as it may be in a digest: of a local folder its last part, for its weights have a digest."""
    return Path(id).name if Path(id).is_absolute() else id


def portable_candidate(candidate: Candidate) -> Candidate:
    """The candidate with its adapters' base models named as in a digest."""
    adapters = {
        key: replace(adapter, base_model=portable_model(adapter.base_model))
        for key, adapter in candidate.adapters.items()
    }
    return replace(candidate, adapters=adapters)


def per_example(report: Report) -> Sequence[Sequence[Any]]:
    """`[[example id, score], …]` in the order of the split."""
    return [[example, score] for example, score in report.scores]
