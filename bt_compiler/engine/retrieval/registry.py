"""The retriever kinds that a spec may name.

Knows which kind takes which options; how a kind indexes and searches is in its own file, imported when it is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.corpus import check_corpus
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.engine.retrieval.retriever import Retriever
from bt_compiler.engine.retrieval.template import template_fields
from bt_compiler.errors import SpecError
from bt_compiler.spec.schema import PLAIN_URL, is_plain_url, may_hold_key
from bt_compiler.spec.sections import RetrieverSection
from bt_compiler.spec.sourcing import RETRIEVER_KEYS


@dataclass(frozen=True, slots=True)
class _Kind:
    open: Callable[[Opening], Retriever]
    needs: Literal["corpus", "several", "one", "server"]
    """What it searches: a corpus, other retrievers (two or more, or one), or a server."""
    options: Mapping[str, Callable[[Any], str | None]]
    """Option -> what is wrong with a value (words that follow the option's name), or None."""
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    """Options of which exactly one is given."""


def retriever_kinds() -> tuple[str, ...]:
    """Registered kinds in order."""
    return tuple(sorted(_KINDS))


def check_retriever(section: RetrieverSection, *, corpus: bool = True) -> None:
    """Kind, options, and, unless told otherwise, the head of the corpus, without indexing anything.

    Raises SpecError with every finding (BTC370 to BTC373, BTC378, BTC386), else DataError (BTC373 to BTC375).
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
    found += [_lacking(section, name) for name in kind.required if name not in section.options]
    found += _check_choice(section, kind)
    found += _check_sources(section, kind)
    if found:
        raise SpecError(found)
    if corpus and section.corpus is not None:
        check_corpus(section.corpus)


def _lacking(section: RetrieverSection, option: str) -> Diagnostic:
    message = f"retriever `{section.name}` of kind `{section.kind}` needs the option `{option}`"
    return Diagnostic(code="BTC372", message=message, span=section.span)


def _check_choice(section: RetrieverSection, kind: _Kind) -> list[Diagnostic]:
    given = [name for name in kind.one_of if name in section.options]
    if not kind.one_of or len(given) == 1:
        return []
    names = " or ".join(f"`{name}`" for name in kind.one_of)
    what = "has more than one of the options" if given else "needs one of the options"
    message = f"retriever `{section.name}` of kind `{section.kind}` {what} {names}"
    return [Diagnostic(code="BTC372", message=message, span=section.span)]


def _check_sources(section: RetrieverSection, kind: _Kind) -> list[Diagnostic]:
    """Whether the retriever names what it searches, and nothing else."""
    found: list[tuple[str, str, str | None]] = []
    if kind.needs == "corpus" and section.corpus is None:
        found.append(("BTC373", "has no corpus", "name the file: `corpus: data/corpus.jsonl`"))
    if kind.needs != "corpus" and section.corpus is not None:
        found.append(("BTC386", "takes no corpus", "leave it out: what it searches is said elsewhere"))
    wanted = {"several": "two or more retrievers", "one": "one retriever"}.get(kind.needs)
    if wanted is None and section.of:
        found.append(("BTC386", "combines no retrievers", "leave `of` out"))
    elif (kind.needs == "several" and len(section.of) < 2) or (kind.needs == "one" and len(section.of) != 1):
        example = "[words, meaning]" if kind.needs == "several" else "[words]"
        found.append(("BTC386", f"needs `of` with {wanted}", f"write `of: {example}`"))
    head = f"retriever `{section.name}` of kind `{section.kind}`"
    return [Diagnostic(code=code, message=f"{head} {what}", span=section.span, help=help) for code, what, help in found]


def reachable(names: Collection[str], sections: Sequence[RetrieverSection]) -> tuple[RetrieverSection, ...]:
    """The retrievers of these names and all that they are made of, in the order of the spec."""
    wanted, left = set[str](), list(names)
    by_name = {section.name: section for section in sections}
    while left:
        name = left.pop()
        if name not in wanted and name in by_name:
            wanted.add(name)
            left += by_name[name].of
    return tuple(section for section in sections if section.name in wanted)


def open_retrievers(
    names: Collection[str],
    sections: Sequence[RetrieverSection],
    *,
    cache_root: Path,
    progress: Progress,
    carried: Mapping[str, Path] = MappingProxyType({}),
    expected: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Retriever]:
    """The retrievers of these names and all that they are made of, each opened once; parts come before what they make.

    An index is built unless one of the same content lies under `cache_root`, or `carried` has its folder by the
    retriever's name: then the corpus is not looked at. `expected` has the digests that retrievers must have. Raises
    what `check_retriever` raises, DataError for the rest of the corpus (BTC374 to BTC377), BackendError where packages
    or a model are missing or a server does not answer as it should (BTC379 to BTC385, BTC500 to BTC503), and
    BundleError BTC563 or BTC568 where a retriever is not the one expected.
    """
    opened: dict[str, Retriever] = {}
    left = list(reachable(names, sections))
    while left:
        section = next(one for one in left if all(part in opened for part in one.of))  # `build` refuses circles
        left.remove(section)
        opening = Opening(
            section=section,
            parts=tuple(opened[part] for part in section.of),
            cache_root=cache_root,
            progress=progress,
            carried=carried.get(section.name),
            expected=expected.get(section.name),
        )
        check_retriever(section, corpus=opening.carried is None)
        opened[section.name] = _KINDS[section.kind].open(opening)
        opening.refuse_another(opened[section.name].digest)
    return opened


def open_retriever(
    section: RetrieverSection, *, cache_root: Path, progress: Progress, others: Sequence[RetrieverSection] = ()
) -> Retriever:
    """One retriever; `others` are those it may be made of. See `open_retrievers`."""
    sections = [section, *(other for other in others if other.name != section.name)]
    return open_retrievers([section.name], sections, cache_root=cache_root, progress=progress)[section.name]


def _check_option(section: RetrieverSection, kind: _Kind, name: str, value: Any) -> Diagnostic | None:
    if name not in kind.options:
        return Diagnostic(
            code="BTC371",
            message=f"retriever kind `{section.kind}` has no option `{name}`",
            span=section.span,
            help=did_you_mean(name, _keys(kind), what="its keys"),
        )
    wrong = kind.options[name](value)
    if wrong is None:
        return None
    return Diagnostic(
        code="BTC372", message=f"option `{name}` of retriever `{section.name}` {wrong}", span=section.span
    )


def _keys(kind: _Kind) -> list[str]:
    """All that is written beside `kind`: its options, and what retrievers that search the like have in common."""
    elsewhere = {"kind"}
    elsewhere |= {"corpus"} if kind.needs != "corpus" else set()
    elsewhere |= {"of"} if kind.needs not in ("several", "one") else set()
    return [*(key for key in RETRIEVER_KEYS if key not in elsewhere), *kind.options]


def _open_bm25(opening: Opening) -> Retriever:
    from bt_compiler.engine.retrieval.bm25 import open_bm25

    return open_bm25(opening)


def _open_dense(opening: Opening) -> Retriever:
    from bt_compiler.engine.retrieval.dense import open_dense

    return open_dense(opening)


def _open_hybrid(opening: Opening) -> Retriever:
    from bt_compiler.engine.retrieval.combined import open_hybrid

    return open_hybrid(opening)


def _open_reranked(opening: Opening) -> Retriever:
    if "module" in opening.section.options:
        return opening.parts[0]  # the program asks the module about each of its passages
    from bt_compiler.engine.retrieval.combined import open_reranked

    return open_reranked(opening)


def _open_remote(opening: Opening) -> Retriever:
    from bt_compiler.engine.retrieval.remote import open_remote

    return open_remote(opening)


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


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else f"expects a text, got `{value}`"


def _model(value: Any) -> str | None:
    from bt_compiler.engine.retrieval.encoder import shipped_by

    id = shipped_by(value) if isinstance(value, str) else None
    return _text(value) if id is None else f"names a package; write the id of the model that it ships, `{id}`"


def _template(value: Any) -> str | None:
    if not isinstance(value, str):
        return _text(value)
    try:
        template_fields(value)
    except ValueError as error:
        return f"cannot be read: {error}; write names of stored fields in braces, as in `{{title}} | {{text}}`"
    return None


def _texts(value: Any) -> str | None:
    fine = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return None if fine else f"expects a list of fields, got `{value}`"


def _url(value: Any) -> str | None:
    if isinstance(value, str) and is_plain_url(value):
        return None
    if isinstance(value, str) and may_hold_key(value):
        return f"is no plain URL: {PLAIN_URL}"
    return f"expects a URL such as `http://localhost:9200`, got `{value}`"


def _structure(value: Any) -> str | None:
    return (
        None if isinstance(value, dict | list) else f"expects a map or a list in the server's language, got `{value}`"
    )


def _key(value: Any) -> str | None:
    fine = isinstance(value, dict) and list(value) == ["env"] and isinstance(value["env"], str)
    return None if fine else "names the environment variable that holds the key: `{env: SEARCH_KEY}`"


def _whole(least: int, most: int) -> Callable[[Any], str | None]:
    def wrong(value: Any) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return None
        return f"expects a whole number from {least} to {most}, got `{value}`"

    return wrong


_MODEL = {"model": _model, "revision": _text}
_SERVER = {"endpoint": _url, "timeout": _number(0.001, 600), "api_key": _key, "revision": _text}
_STORED = {"id": _text, "title": _text, "text": _template, "filter": _structure}
_DEPTH = {"depth": _whole(1, 10000)}
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "bm25": _Kind(
            _open_bm25,
            "corpus",
            {"stemmer": _stemmer, "stopwords": _stopwords, "k1": _number(0, 10), "b": _number(0, 1)},
        ),
        "colbert": _Kind(_open_remote, "server", _SERVER, ("endpoint",)),
        "dense": _Kind(_open_dense, "corpus", _MODEL, ("model",)),
        "elasticsearch": _Kind(
            _open_remote, "server", {**_SERVER, **_STORED, "index": _text, "search": _texts}, ("endpoint", "index")
        ),
        "hybrid": _Kind(_open_hybrid, "several", {**_DEPTH, "rank_constant": _whole(1, 10000)}),
        "qdrant": _Kind(
            _open_remote,
            "server",
            {**_SERVER, **_STORED, **_MODEL, "collection": _text, "vector": _text},
            ("endpoint", "collection", "model"),
        ),
        "rerank": _Kind(_open_reranked, "one", {**_DEPTH, **_MODEL, "module": _text}, one_of=("model", "module")),
    }
)
