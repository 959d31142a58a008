"""One did-you-mean, or the list of what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def did_you_mean(word: str, allowed: Iterable[str], *, what: str = "known names") -> str:
    """Help text for an unknown `word`: the closest allowed name, else all of them (ten at most)."""
    names = sorted(set(allowed))
    close = _closest(word, names)
    if close is not None:
        return f"did you mean `{close}`?"
    if not names:
        return f"there are no {what} here"
    shown = ", ".join(f"`{name}`" for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{what}: {shown}{more}"


def is_meant(name: str, given: Iterable[str], allowed: Iterable[str]) -> bool:
    """Whether `did_you_mean` takes one of the `given` names that are not `allowed` for `name`."""
    names = sorted(set(allowed))
    return any(word not in names and _closest(word, names) == name for word in given)


def _closest(word: str, names: Sequence[str]) -> str | None:
    return next(iter(get_close_matches(word, names, n=1, cutoff=0.65)), None)
