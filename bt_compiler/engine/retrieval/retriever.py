"""The `Retriever` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from bt_compiler.errors import ExampleError

Passage = dict[str, Any]
"""`id`, `title`, `text` (str) and `score` (float): a value of the type `Passage`."""


class Retriever(Protocol):
    """Finds passages. Equal digest, equal answers."""

    @property
    def digest(self) -> str:
        """SHA-256 over corpus, settings and the versions of the libraries that index it; of a remote one over its
        declared revision, else its URL.
        """
        ...

    def search(self, queries: Sequence[str], k: int) -> Sequence[list[Passage] | ExampleError]:
        """For every query its k best passages (all of them where the corpus has fewer), best first; equal scores in
        the order of the corpus. A score of exactly 0 says that nothing of the query is in the passage: where words are
        searched, such passages in the order of the corpus fill the list up. In the place of a query that a server
        refuses, while it answers others, is the error that its example fails with.
        """
        ...


@runtime_checkable
class Indexed(Protocol):
    """A retriever over an index of its own, which a bundle may carry."""

    @property
    def digest(self) -> str:
        """As `Retriever.digest`."""
        ...

    @property
    def folder(self) -> Path:
        """The index: plain files, none of them in a folder below it."""
        ...
