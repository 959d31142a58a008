"""A folder that appears whole or not at all: built beside its place, synced to disk, then swapped in by rename.

Knows nothing of what is in the folder.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_HERE = -100
"""AT_FDCWD."""


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new empty folder beside `target` that takes its place when the block ends without an exception.

    On an exception the new folder goes and `target` is as it was. What a killed process left behind beside `target`
    goes too. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    part = target.with_name(f".{target.name}.new-{os.getpid()}")
    part.mkdir()
    try:
        yield part
        _sync_folders(part)
        _put_in_place(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _sync(target.parent)


def put(path: Path, data: bytes) -> None:
    """Writes a new file, folders included, and syncs it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_copy(path: Path, source: Path) -> None:
    """As `put`, with the bytes of `source`, block by block. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as old, path.open("xb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def _put_in_place(part: Path, target: Path) -> None:
    """Afterwards `target` is the new folder, and `part` the old one where there was one."""
    if not target.exists():
        part.rename(target)
        return
    if _exchange(part, target):
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    try:
        part.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step, so that there is no moment without `other`; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _sweep(target: Path) -> None:
    """Removes new folders of processes that are gone; an old one goes back where its place is empty."""
    for kind in ("old", "new"):
        for left in target.parent.glob(f".{glob.escape(target.name)}.{kind}-*"):
            if _alive(left.name.rpartition("-")[2]):
                continue
            if kind == "old" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _alive(pid: str) -> bool:
    """Whether another process of that number runs."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_folders(folder: Path) -> None:
    for root, _, _ in os.walk(folder):
        _sync(Path(root))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
