"""The process of one tool: loads a function, says so, then answers one JSON line with another until its input ends.

Imports nothing of btc. What the function prints goes to stderr, for stdout carries the answers.
"""

from __future__ import annotations

import inspect
import json
import os
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any


def loaded(kind: str, source: str, name: str) -> Callable[..., Any]:
    """The function `name` of a file, or the entry point `name` of a group."""
    if kind == "file":
        sys.path.insert(0, str(Path(source).parent))  # modules beside it, as where Python is given the file
        found = runpy.run_path(source)
        if name not in found:
            raise LookupError(f"`{source}` defines no `{name}`")
        function = found[name]
    else:
        (entry,) = entry_points(group=source, name=name)
        function = entry.load()
    if not callable(function):
        raise TypeError(f"`{name}` is no function")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"`{name}` is `async`: nothing awaits it, a tool is a plain function")
    return function  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """The Python number of a number of numpy or torch. Raises TypeError for whatever else JSON has no word for."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def main(arguments: list[str]) -> None:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer, allow_nan=False, default=plain) + "\n")
        answers.flush()

    try:
        function = loaded(*arguments)
    except Exception as error:  # the boundary to a person's code: whatever it raises is said, not shown as a bug
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in sys.stdin:
        try:
            say({"result": function(**json.loads(line))})
        except Exception as error:  # as above
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv[1:])
