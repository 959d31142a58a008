"""One did-you-mean, or the list of what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, allowed: Iterable[str], *, what: str = "known names") -> str:
    """Help text for an unknown `word`: the closest allowed name, else all of them (ten at most)."""
    names = sorted(set(allowed))
    close = get_close_matches(word, names, n=1, cutoff=0.65)
    if close:
        return f"did you mean `{close[0]}`?"
    if not names:
        return f"there are no {what} here"
    shown = ", ".join(f"`{name}`" for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{what}: {shown}{more}"
