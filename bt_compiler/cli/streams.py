"""Standard input and output as a shell may leave them: closed, on a full disk, or in a charset without our letters."""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from typing import Any, TextIO


def open_streams() -> None:
    """Lets every stream be used: one that is closed (`>&-`) is empty, or takes everything, and letters that stdout's
    charset lacks are escaped, as stderr does it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 (a device, for good)
    if isinstance(sys.stdout, TextIOWrapper) and not _is_utf8(sys.stdout):
        sys.stdout.reconfigure(errors="backslashreplace")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON for stdout; in ASCII where its charset is not UTF-8, for an escape of the stream's own is no JSON."""
    return json.dumps(value, indent=indent, ensure_ascii=not _is_utf8(sys.stdout))


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def discard(stream: TextIO) -> None:
    """What the stream still holds, and what is written to it from now on, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
