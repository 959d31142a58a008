"""API keys: read from the environment when a connection is opened, and nowhere else. No message ever shows one."""

from __future__ import annotations

import os


def read_key(variable: str) -> str:
    """The key in an environment variable, without the line break that files of secrets end in.

    Raises ValueError, which says what is wrong with the variable, where it holds nothing that a header can carry.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"the environment variable `{variable}` is not set")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable `{variable}` holds characters that no key has")
    return key
