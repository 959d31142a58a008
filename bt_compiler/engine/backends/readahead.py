"""Reading of weights that begins before anybody asks for them: the disk works while packages are imported, retrievers
opened and indexes built.

The system is asked for the pages and fetches them by itself; what is there already costs nothing. Knows files; nothing
of models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

_PIECE = 1 << 20
"""Bytes that are asked for at once: of a whole file Linux would fetch the first few MB alone."""


def read_ahead(files: Iterable[Path]) -> Thread | None:
    """Has the system read `files` into its memory, in the background; what cannot be read is for the loader to say.

    None: nothing is done, for the system takes no such wishes (Linux does) or the files are larger than its memory.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    sizes = {path: path.stat().st_size for path in files}
    if not sizes or sum(sizes.values()) > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return None
    thread = Thread(target=_ask, args=(sizes,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _ask(sizes: dict[Path, int]) -> None:
    for path, size in sizes.items():
        with suppress(OSError), path.open("rb", buffering=0) as file:
            for start in range(0, size, _PIECE):
                os.posix_fadvise(file.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)
