"""How long a `poll` lasts: waiting for what runs by itself, and working in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def waited(queue: SimpleQueue[T | None], seconds: float | None) -> T | None:
    """The next item; None where it is an interruption, or nothing came within the seconds."""
    try:
        return queue.get(timeout=seconds)
    except Empty:
        return None


def turn(seconds: float | None) -> Callable[[], bool]:
    """A question whether the seconds, counted from now, are over; never where there is no limit."""
    if seconds is None:
        return lambda: False
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
