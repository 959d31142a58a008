"""`data` and `retrievers` as typed settings. Part of the one reader of settings (`build`); it opens no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bt_compiler.diagnostics import Span, did_you_mean
from bt_compiler.spec.declared import type_finding
from bt_compiler.spec.document import Spec, names_path
from bt_compiler.spec.optimizing import REMOTE_ENGINES, Findings
from bt_compiler.spec.sections import (
    Condition,
    CorpusSection,
    DataSection,
    Extraction,
    RetrieverSection,
    SourceSection,
)
from bt_compiler.spec.tree import Place
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_fields
from bt_compiler.spec.types import Field, Type

DEFAULT_SPLIT: Mapping[str, float] = {"train": 0.6, "dev": 0.2, "test": 0.2}
RETRIEVER_KEYS = ("kind", "corpus", "of", "k", "description")
"""Keys of a retriever that every kind may have; the rest are its options."""


def build_data(spec: Spec, named: Mapping[str, Type] | None, findings: Findings) -> DataSection:
    """The section `data`. `named`: the spec's types, None where they are wrong. Findings BTC126, BTC142."""
    written = spec.get(("data",))
    span = spec.span(("data",))
    if isinstance(written, str):
        source = SourceSection(path=spec.file(("data",)), span=span)
        return DataSection(path=source, split=DEFAULT_SPLIT, span=span)
    labels = _labels(spec, written, named, findings)
    columns, extract = _columns(written.get("columns", {}), findings)
    spans = {**_spans(spec, ("data", "columns")), **_spans(spec, ("data",), "stratify")}
    if "path" in written:
        split = written.get("split", DEFAULT_SPLIT)
        _check_split(split, findings)
        source = _source(spec, ("data",), {})
        return DataSection(
            path=source,
            split=split,
            stratify=written.get("stratify"),
            columns=columns,
            extract=extract,
            labels=labels,
            span=span,
            spans=spans,
        )
    sources = {name: _source(spec, ("data", name), written) for name in ("train", "dev", "test") if name in written}
    return DataSection(
        train=sources["train"],
        dev=sources.get("dev"),
        test=sources.get("test"),
        columns=columns,
        extract=extract,
        labels=labels,
        span=span,
        spans=spans,
    )


def _spans(spec: Spec, place: Place, *keys: str) -> dict[Place, Span]:
    """Where the values of these keys of the map at `place` stand; without any, where each of its keys does."""
    written = spec.get(place, {})
    if keys:
        return {(key,): spec.span((*place, key)) for key in keys if key in written}
    return {(place[-1], key): spec.span((*place, key), key=True) for key in written}


def _labels(
    spec: Spec, written: Mapping[str, Any], named: Mapping[str, Type] | None, findings: Findings
) -> tuple[Field, ...]:
    labels: list[Field] = []
    for name, node in written.get("labels", {}).items():
        try:
            labels += parse_fields({name: node}, named)
        except TypeSyntaxError as error:
            if named is None and error.unknown in spec.get(("types",)):
                continue  # what is wrong with that type has been said
            findings.items.append(type_finding(spec, ("data", "labels"), error))
    return tuple(labels)


def _columns(written: Mapping[str, Any], findings: Findings) -> tuple[dict[str, str], dict[str, Extraction]]:
    columns: dict[str, str] = {}
    extract: dict[str, Extraction] = {}
    for name, column in written.items():
        place: Place = ("data", "columns", name)
        if isinstance(column, str):
            columns[name] = column
            continue
        columns[name] = column.get("column", name)
        if "match" in column and "number_after" in column:
            help = "leave one of them out"
            findings.add("BTC142", f"`columns.{name}` has both `match` and `number_after`", place, key=True, help=help)
        elif "match" in column or "number_after" in column:
            extract[name] = Extraction(match=column.get("match"), number_after=column.get("number_after"))
        _check_pattern(name, column.get("match"), findings)
    return columns, extract


def _check_pattern(name: str, pattern: str | None, findings: Findings) -> None:
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        message = f"the regular expression of `columns.{name}` cannot be read: {error}"
        findings.add("BTC142", message, ("data", "columns", name, "match"), help="it is one of Python's `re`")


def _source(spec: Spec, place: Place, above: Mapping[str, Any]) -> SourceSection:
    """The source written at `place`, a text or a map; what it leaves out is as `above` says."""
    written = spec.get(place)
    if isinstance(written, str):
        written, path, span = {}, spec.file(place), spec.span(place)
    else:
        path, span = spec.file((*place, "path")), spec.span((*place, "path"))
    settings = {**{key: above[key] for key in ("limit", "where", "sample") if key in above}, **written}
    filters: Place = (*place, "where") if "where" in written else (place[0], "where")
    sample = settings.get("sample")
    drawn: Mapping[str, Any] = sample if isinstance(sample, Mapping) else {"rows": sample}
    return SourceSection(
        path=path,
        limit=settings.get("limit"),
        where=conditions(settings.get("where", {})),
        sample=drawn["rows"],
        seed=drawn.get("seed", 0),
        span=span,
        spans=_spans(spec, filters),
    )


def conditions(where: Mapping[str, Any]) -> tuple[Condition, ...]:
    """`where` as conditions, one a column."""
    return tuple(_condition(column, wanted) for column, wanted in where.items())


def _condition(column: str, wanted: Any) -> Condition:
    if not isinstance(wanted, Mapping):
        return Condition(column=column, among=_values(wanted))
    return Condition(
        column=column,
        excluded=_values(wanted["not"]) if "not" in wanted else (),
        least=wanted.get("min"),
        most=wanted.get("max"),
    )


def _values(written: Any) -> tuple[Any, ...]:
    return tuple(written) if isinstance(written, list) else (written,)


def are_counts(split: Mapping[str, float]) -> bool:
    """Whether these are numbers of rows: whole, and more than 1 in all. One row is `1`, and `1.0` a share."""
    sizes = split.values()
    return sum(sizes) > 1 and all(float(size).is_integer() and (size > 1 or isinstance(size, int)) for size in sizes)


def _check_split(split: Mapping[str, float], findings: Findings) -> None:
    place: Place = ("data", "split")
    sizes = list(split.values())
    shares = all(size <= 1 for size in sizes)
    if not shares and not are_counts(split):
        help = "write `{train: 50, dev: 50, test: 50}` or `{train: 0.6, dev: 0.2, test: 0.2}`"
        findings.add("BTC126", "`data.split` mixes numbers of rows and shares", place, help=help)
    elif not are_counts(split) and sum(sizes) > 1 + 1e-9:
        findings.add("BTC126", f"the shares of `data.split` add up to {sum(sizes):g}", place, help="they are 1 at most")


def build_retrievers(spec: Spec, findings: Findings) -> tuple[RetrieverSection, ...]:
    """Every entry of `retrievers`. Findings BTC141: `of` names what is not there, or goes in a circle; BTC388: it names
    what a module ranks.
    """
    written = spec.get(("retrievers",), {})
    sections = _numbered_apart(tuple(_retriever(spec, name) for name in written))
    by_name = {section.name: section for section in sections}
    for section in sections:
        for number, name in enumerate(section.of):
            place: Place = ("retrievers", section.name, "of", number)
            if name not in by_name:
                help = did_you_mean(name, written, what="retrievers")
                findings.add("BTC141", f"unknown retriever `{name}`", place, help=help)
            elif _reaches(name, section.name, by_name):
                message = f"retriever `{section.name}` is made of itself"
                findings.add("BTC141", message, place, help="combine retrievers that search a corpus")
            elif by_name[name].kind == "rerank" and "module" in by_name[name].options:
                message = f"the passages of `{name}` are ranked by a module, so that no retriever can be made of it"
                findings.add("BTC388", message, place, help="name what it is made of, and rank last")
    return sections


def _numbered_apart(sections: tuple[RetrieverSection, ...]) -> tuple[RetrieverSection, ...]:
    """Where row numbers are ids and there are other passages, the numbers get the name of the first retriever over
    that file: passages of one id are taken for one, whether a `hybrid` finds them, a loop collects or `known` has them.
    """
    sources: dict[tuple[str, str | None], str] = {}
    for section in sections:
        if section.corpus is not None:
            sources.setdefault((section.corpus.path, section.corpus.id), section.name)
        elif not section.of:  # a server
            sources[section.name, None] = section.name
    if len(sources) < 2:
        return sections
    return tuple(
        section
        if section.corpus is None or section.corpus.id is not None
        else replace(section, corpus=replace(section.corpus, prefix=f"{sources[section.corpus.path, None]}:"))
        for section in sections
    )


def _reaches(start: str, goal: str, by_name: Mapping[str, RetrieverSection]) -> bool:
    seen, left = set[str](), [start]
    while left:
        name = left.pop()
        if name == goal:
            return True
        if name not in seen and name in by_name:
            seen.add(name)
            left += by_name[name].of
    return False


def _retriever(spec: Spec, name: str) -> RetrieverSection:
    place: Place = ("retrievers", name)
    written = spec.get(place)
    options = {key: value for key, value in written.items() if key not in RETRIEVER_KEYS}
    if isinstance(options.get("model"), str):
        options["model"] = model_id(spec, (*place, "model"), options["model"])
    return RetrieverSection(
        name=name,
        kind=written["kind"],
        corpus=_corpus(spec, (*place, "corpus")) if "corpus" in written else None,
        of=tuple(written.get("of", ())),
        k=written.get("k", 3),
        description=written.get("description"),
        options=options,
        span=spec.span(place),
    )


def _corpus(spec: Spec, place: Place) -> CorpusSection:
    written = spec.get(place)
    if isinstance(written, str):
        return CorpusSection(path=spec.file(place), span=spec.span(place))
    settings = {**written, "path": spec.file((*place, "path")), "where": conditions(written.get("where", {}))}
    spans = {**_spans(spec, place, "id", "title", "text"), **_spans(spec, (*place, "where"))}
    return CorpusSection(**settings, span=spec.span((*place, "path")), spans=spans)


def model_id(spec: Spec, place: Place, written: str, engine: str = "transformers") -> str:
    """Absolute where a folder or file of that name lies beside the spec, or where it is written as a path."""
    if engine in REMOTE_ENGINES:
        return written
    at = (*place, "id") if isinstance(spec.get(place), Mapping) else place
    if spec.get(at) is None:
        return written
    path = Path(spec.file(at))
    return str(path) if names_path(written, path) else written
