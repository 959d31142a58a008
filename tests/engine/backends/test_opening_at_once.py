"""Threads of one process that open models at the same time."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from transformers.utils import logging

from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.backends.remembered import remembered

THREADS = 6


def test_what_several_measure_at_once_is_kept(tmp_path: Path) -> None:
    meeting = Barrier(THREADS)

    def measured() -> int:
        meeting.wait(20)
        return 7

    with ThreadPoolExecutor(THREADS) as pool:
        asked = [pool.submit(remembered, tmp_path, "speed", "key", measured) for _ in range(THREADS)]
        assert [one.result() for one in asked] == [7] * THREADS
    assert len(list((tmp_path / "machine").iterdir())) == 1
    assert remembered(tmp_path, "speed", "key", lambda: 8) == 7


def test_it_stays_quiet_until_the_last_has_loaded() -> None:
    def state() -> tuple[object, ...]:
        return sys.stderr, logging.is_progress_bar_enabled(), logging.get_verbosity(), list(warnings.filters)

    before = state()
    first, second = quiet(), quiet()
    first.__enter__()
    within = state()
    second.__enter__()
    first.__exit__(None, None, None)
    assert state() == within and within[0] is not before[0] and not within[1]
    second.__exit__(None, None, None)
    assert state() == before
