"""Retrievers: queries in, passages out. A kind is a file here and one entry in `registry`."""

from bt_compiler.engine.retrieval.apart import ids_within, refuse_shared_ids
from bt_compiler.engine.retrieval.opening import mend
from bt_compiler.engine.retrieval.registry import (
    check_retriever,
    open_retriever,
    open_retrievers,
    reachable,
    retriever_kinds,
)
from bt_compiler.engine.retrieval.retriever import Indexed, Passage, Retriever

__all__ = [
    "Indexed",
    "Passage",
    "Retriever",
    "check_retriever",
    "ids_within",
    "mend",
    "open_retriever",
    "open_retrievers",
    "reachable",
    "refuse_shared_ids",
    "retriever_kinds",
]
