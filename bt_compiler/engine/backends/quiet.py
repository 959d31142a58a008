"""Keeps transformers' progress bars and notices off the terminal while something is loaded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from threading import Lock

_CHANGING = Lock()
_WITHIN: list[ExitStack] = []
"""One for each that is within, of any thread, for what is turned off is the process's. The first holds how it was."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers draws no bars, logs errors only and warns of nothing; afterwards it is as it was."""
    with _CHANGING:
        _WITHIN.append(_silenced() if not _WITHIN else ExitStack())
    try:
        yield
    finally:
        with _CHANGING:
            _WITHIN.pop().close()  # so that the first is closed by whoever leaves last


def _silenced() -> ExitStack:
    """Closing it makes everything as it was."""
    from transformers.utils import logging

    back = ExitStack()
    back.callback(logging.set_verbosity, logging.get_verbosity())
    if logging.is_progress_bar_enabled():
        back.callback(logging.enable_progress_bar)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # some bars ask nobody: what they draw goes nowhere
    back.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    back.enter_context(redirect_stderr(io.StringIO()))
    return back
