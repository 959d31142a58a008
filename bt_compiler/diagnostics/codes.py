"""The registry of codes: one TOML file an area under `codes/`, an entry has a title and the text of `btc explain`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """What `btc explain CODE` prints."""

    code: str
    title: str
    """One line, as the message says it in general."""
    text: str
    """Why it is an error, an example and the way out."""


@cache
def _registry() -> dict[str, CodeInfo]:
    found: dict[str, CodeInfo] = {}
    for entry in sorted(files(__package__).joinpath("codes").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            for code, info in tomllib.loads(entry.read_text(encoding="utf-8")).items():
                found[code] = CodeInfo(code=code, title=info["title"], text=info["text"].strip())
    return found


def known_codes() -> tuple[str, ...]:
    """All codes in order."""
    return tuple(sorted(_registry()))


def explain(code: str) -> CodeInfo | None:
    """The entry of `code` in any case (`btc203` too), or None."""
    return _registry().get(code.upper())
