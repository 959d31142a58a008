"""Weights are in the system's memory before anybody reads them."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from bt_compiler.engine.backends import read_weights_ahead
from bt_compiler.engine.backends.readahead import read_ahead
from bt_compiler.engine.progress import Silent
from bt_compiler.spec.sections import ModelSection

_SIZE = 24 << 20

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no wishes for pages")


def test_a_file_is_fetched_as_a_whole(tmp_path: Path) -> None:
    file = _cold(tmp_path / "model.safetensors")
    thread = read_ahead([file])
    assert thread is not None
    thread.join()
    deadline = time.monotonic() + 30
    while _resident(file) < 1.0 and time.monotonic() < deadline:  # the system fetches on by itself
        time.sleep(0.05)
    assert _resident(file) == 1.0


def test_files_larger_than_memory_are_left_alone(tmp_path: Path) -> None:
    sparse = tmp_path / "model.safetensors"
    with sparse.open("wb") as file:
        file.truncate(1 << 43)
    assert read_ahead([sparse]) is None


def test_a_missing_package_is_for_whoever_opens_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without torch has no hub's library either, and a model is looked for with that."""
    for name in ("torch", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    read_weights_ahead([ModelSection(name="default", id="some/model")], cache_root=tmp_path, progress=Silent())


def _cold(path: Path) -> Path:
    """A file of which nothing is in memory."""
    path.write_bytes(os.urandom(_SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _resident(path) > 0.5:
        pytest.skip("this file system keeps all files in memory")
    return path


def _resident(path: Path) -> float:
    """Share of a file's pages that are in memory, by mincore(2)."""
    pages = _SIZE // mmap.PAGESIZE
    told = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), _SIZE, flags=mmap.MAP_PRIVATE) as view:
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        found = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(start), ctypes.c_size_t(_SIZE), told)
        if found != 0:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(value & 1 for value in told) / pages
