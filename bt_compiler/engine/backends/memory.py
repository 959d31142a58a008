"""Out of memory, under one name whatever device it was on, and what is said where nothing smaller is left to try.

Knows how PyTorch says it; nothing of models, rows or training.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bt_compiler.errors import BackendError

_SIGNS = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "could not create a primitive",
    "could not create a memory object",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""What is in the text of errors that are plain RuntimeErrors: PyTorch's allocator on the CPU, C++, oneDNN (it says no
more; what it cannot compute at all the check at load has met), and CUDA's libraries beside PyTorch's own allocator."""


class OutOfMemory(Exception):
    """The work did not fit; smaller parts may."""


@contextmanager
def out_of_memory_named() -> Iterator[None]:
    """Named boundary: what says that memory ran out is raised again as OutOfMemory, all else passes."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS):
            raise
        raise OutOfMemory from error


def reclaim() -> None:
    """Gives back what is no longer used. To be called once the error is gone: its frames hold the tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def row_too_large(*, prompt: int, answer: int, at_once: int) -> BackendError:
    """One row alone has no room: `prompt` and `answer` in tokens, of which `at_once` at most were computed together."""
    return BackendError.of(
        "BTC513",
        f"generating runs out of memory with one row at work: its prompt has {prompt} tokens, its answer may have "
        f"{answer}, and at most {at_once} of them were computed together",
        help="write a smaller `max_tokens`, give fewer or shorter passages and demos, or in `model` write "
        "`dtype: bfloat16` or name a smaller one",
    )


def part_too_large(rows: int) -> BackendError:
    """A part of `rows` rows has no room, and a smaller one would give other results."""
    return BackendError.of(
        "BTC514",
        f"generating runs out of memory with {rows} rows at once; on this machine a row's result depends on how many "
        "there are, so that the batch is not made smaller unasked",
        help=f"write `batch: {max(1, rows // 2)}` in the model",
    )
