"""Retrievers: queries in, passages out. A kind is a file here and one entry in `registry`."""

from bt_compiler.engine.retrieval.registry import (
    Passage,
    Retriever,
    check_retriever,
    open_retriever,
    retriever_kinds,
)

__all__ = ["Passage", "Retriever", "check_retriever", "open_retriever", "retriever_kinds"]
