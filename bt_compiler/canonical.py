"""Canonical JSON and content hashes: what ids, cache keys and digests are made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


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
