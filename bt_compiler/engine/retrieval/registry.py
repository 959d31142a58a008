"""The `Retriever` protocol and the kinds that a spec may name.

Knows which kind takes which options; how a kind indexes and searches is in its own file, imported when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.corpus import check_corpus
from bt_compiler.errors import SpecError
from bt_compiler.spec.sections import RetrieverSection

Passage = dict[str, Any]
"""`id`, `title`, `text` (str) and `score` (float): a value of the type `Passage`."""


class Retriever(Protocol):
    """Finds passages. Equal digest, equal answers."""

    @property
    def digest(self) -> str:
        """SHA-256 over corpus, settings and the versions of the libraries that index it."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """For every query its k best passages (all of them where the corpus has fewer), best first; equal scores in
        the order of the corpus. A query without a known word gets the first k with score 0.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Kind:
    open: Callable[[RetrieverSection, Path, Progress], Retriever]
    options: Mapping[str, Callable[[Any], str | None]]
    """Option -> what is wrong with a value (words that follow the option's name), or None."""


def retriever_kinds() -> tuple[str, ...]:
    """Registered kinds in order."""
    return tuple(sorted(_KINDS))


def check_retriever(section: RetrieverSection) -> None:
    """Kind, options, and the head of the corpus, without indexing anything.

    Raises SpecError with every finding (BTC370 to BTC373, BTC378), else DataError (BTC373 to BTC375).
    """
    kind = _KINDS.get(section.kind)
    if kind is None:
        raise SpecError.of(
            "BTC370",
            f"unknown retriever kind `{section.kind}`",
            span=section.span,
            help=did_you_mean(section.kind, _KINDS, what="retriever kinds"),
        )
    found = [item for name, value in section.options.items() if (item := _check_option(section, kind, name, value))]
    if section.corpus is None:
        found.append(
            Diagnostic(
                code="BTC373",
                message=f"retriever `{section.name}` of kind `{section.kind}` has no corpus",
                span=section.span,
                help="name the file: `corpus: data/corpus.jsonl`",
            )
        )
    if found or section.corpus is None:
        raise SpecError(found)
    check_corpus(section.corpus)


def open_retriever(section: RetrieverSection, *, cache_root: Path, progress: Progress) -> Retriever:
    """The retriever of a spec, indexed unless an index of the same content lies under `cache_root`.

    Raises what `check_retriever` raises, DataError for the rest of the corpus (BTC374 to BTC377) and BackendError
    BTC379 where the kind's packages are missing.
    """
    check_retriever(section)
    return _KINDS[section.kind].open(section, cache_root, progress)


def _check_option(section: RetrieverSection, kind: _Kind, name: str, value: Any) -> Diagnostic | None:
    if name not in kind.options:
        return Diagnostic(
            code="BTC371",
            message=f"retriever kind `{section.kind}` has no option `{name}`",
            span=section.span,
            help=did_you_mean(name, kind.options, what="its options"),
        )
    wrong = kind.options[name](value)
    if wrong is None:
        return None
    return Diagnostic(
        code="BTC372", message=f"option `{name}` of retriever `{section.name}` {wrong}", span=section.span
    )


def _open_bm25(section: RetrieverSection, cache_root: Path, progress: Progress) -> Retriever:
    from bt_compiler.engine.retrieval.bm25 import open_bm25

    return open_bm25(section, cache_root=cache_root, progress=progress)


def _language(allowed: str) -> Callable[[Any], str | None]:
    names = allowed.split()

    def wrong(value: Any) -> str | None:
        if value is None or value in names:
            return None
        return f"does not know `{value}`: {did_you_mean(str(value), names, what='languages')}"

    return wrong


def _stemmer(value: Any) -> str | None:
    if value is None or value == "english":
        return None
    try:
        import Stemmer
    except ImportError:
        return None  # opening says which package is missing
    return _language(" ".join(Stemmer.algorithms()))(value)


def _stopwords(value: Any) -> str | None:
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return None
    return _language(_STOPWORD_LANGUAGES)(value if isinstance(value, str | None) else str(value))


def _number(least: float, most: float) -> Callable[[Any], str | None]:
    def wrong(value: Any) -> str | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return None
        return f"expects a number from {least:g} to {most:g}, got `{value}`"

    return wrong


_STOPWORD_LANGUAGES = (
    "english english_plus german dutch french spanish portuguese italian russian swedish norwegian danish chinese "
    "turkish korean"
)
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "bm25": _Kind(
            _open_bm25,
            {
                "stemmer": _stemmer,
                "stopwords": _stopwords,
                "k1": _number(0, 10),
                "b": _number(0, 1),
            },
        ),
    }
)
