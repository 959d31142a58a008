"""Retrievers: queries in, passages out. A kind is a file here and one entry in `registry`."""

from bt_compiler.engine.retrieval.registry import (
    check_retriever,
    open_retriever,
    reachable,
    retriever_kinds,
)
from bt_compiler.engine.retrieval.retriever import Passage, Retriever

__all__ = ["Passage", "Retriever", "check_retriever", "open_retriever", "reachable", "retriever_kinds"]
