"""Out of memory while training, under one name whatever device it was on. Knows how PyTorch says it; nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ON_CPU = "DefaultCPUAllocator"
"""What PyTorch's allocator signs its errors with, which are plain RuntimeErrors."""


class OutOfMemory(Exception):
    """Training did not fit; smaller parts may."""


@contextmanager
def out_of_memory_named() -> Iterator[None]:
    """Named boundary: what says that memory ran out is raised again as OutOfMemory, all else passes."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory from error
    except RuntimeError as error:
        if _ON_CPU not in str(error):
            raise
        raise OutOfMemory from error
