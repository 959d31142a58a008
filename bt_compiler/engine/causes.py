"""Why runs failed, in one line for people. Knows failures alone, neither programs nor examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bt_compiler.engine.trace import Failure

_LONGEST = 300
"""Characters of a message that are shown."""


def most_frequent(failures: Sequence[Failure]) -> str:
    """`36 × BTC522 the completion …`: the code of most failures, and its message, or of several the most frequent.

    Of equals the first. Raises ValueError where there is no failure.
    """
    if not failures:
        raise ValueError("nothing failed")
    code, count = Counter(failure.code for failure in failures).most_common(1)[0]
    message, same = Counter(failure.message for failure in failures if failure.code == code).most_common(1)[0]
    return f"{count} × {code}{'' if same == count else ', such as'} {in_one_line(message)}"


def in_one_line(message: str) -> str:
    """The message without line breaks, cut where it is very long."""
    text = " ".join(message.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
