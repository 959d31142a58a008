"""Why runs and calls of tools failed, counted, and in lines for people. Knows neither programs nor examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bt_compiler.engine.trace import Failure, ToolFailure, Trace

SHOWN = 5
"""Causes of failed tool calls that are shown to people."""
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


def tool_failures(traces: Sequence[Trace]) -> tuple[ToolFailure, ...]:
    """Calls of tools that failed, by tool and message: the most frequent first, of equals the one that came first."""
    found = Counter(
        (step.node.rpartition("/")[2], step.error) for trace in traces for step in trace.steps if step.error is not None
    )
    return tuple(ToolFailure(tool=tool, message=message, calls=n) for (tool, message), n in found.most_common())


def tool_lines(failures: Sequence[ToolFailure]) -> list[str]:
    """`8 × stock: BTC540: …` for each of the most frequent causes, and how many calls failed otherwise."""
    lines = [f"{one.calls} × {one.tool}: {in_one_line(one.message)}" for one in failures[:SHOWN]]
    rest = sum(one.calls for one in failures[SHOWN:])
    return [*lines, f"{rest} more for other reasons"] if rest else lines


def in_one_line(message: str) -> str:
    """The message without line breaks, cut where it is very long."""
    text = " ".join(message.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
