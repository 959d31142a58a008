"""What vLLM and its worker processes print: kept off the terminal, and read where something goes wrong.

The result of a command is on standard output, so nothing else may be there; workers inherit where their output goes.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Set where the user has set nothing else: vLLM reads these from the environment alone."""
_RAISED = re.compile(r"(?:^|\s)(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception)): (.+)")
_VAGUE = ("Engine core initialization failed", "WorkerProc initialization failed", "Executor failed")
"""What vLLM raises because of another error, which stands above it."""


class VllmLog:
    """A file without a name; gone with the process."""

    def __init__(self) -> None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._file = tempfile.TemporaryFile("w+b", prefix="btc-vllm-")  # noqa: SIM115  # open as long as vLLM runs

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Within, what this process prints goes to the file; processes that are started keep printing there."""
        sys.stdout.flush()
        sys.stderr.flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in before:
            os.dup2(self._file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, kept in before:
                os.dup2(kept, number)
                os.close(kept)

    def last_error(self) -> str | None:
        """The message of the last exception printed that says something; None where there is none."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - 200_000))
        found: str | None = None
        for line in self._file.read().decode("utf-8", "replace").splitlines():
            raised = _RAISED.search(line)
            if raised is not None and not raised.group(2).startswith(_VAGUE):
                found = raised.group(2)
        return None if found is None else found.strip().rstrip(".")[:300]

    def close(self) -> None:
        """Removes the file."""
        self._file.close()
