"""Canonical JSON and content hashes: what ids, cache keys and digests are made of."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def whole(value: Any) -> Any:
    """The JSON value with U+FFFD for halves of characters: JSON can write one as an escape, and nothing else can."""
    if isinstance(value, str):
        return _HALF.sub("\ufffd", value)
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: the JSON object. Raises ValueError where a key is there twice: `json` takes the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key `{twice[:60]}` is there twice in one object")
    return found


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no blanks, no NaN, non-ASCII as it is. Raises TypeError or ValueError elsewhere."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 in hex over the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 in hex over the bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_of(*parts: Any) -> int:
    """An unsigned 63-bit seed from any JSON values: equal parts, equal seed, on every machine and hash seed."""
    return int(digest(list(parts))[:16], 16) >> 1
