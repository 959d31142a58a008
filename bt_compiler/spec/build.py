"""From the validated document to typed settings: the one reader of everything in a spec that is not structure.

It fills in defaults and says what a schema cannot: rules between keys. It knows nothing of how settings are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.errors import SpecError
from bt_compiler.spec.declared import named_types, type_finding
from bt_compiler.spec.document import Spec
from bt_compiler.spec.optimizing import REMOTE_ENGINES, Findings, build_optimize
from bt_compiler.spec.sections import (
    CorpusSection,
    DataSection,
    Generation,
    MetricSection,
    ModelSection,
    RetrieverSection,
    Sections,
    SourceSection,
)
from bt_compiler.spec.tools import build_tools
from bt_compiler.spec.tree import Place
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_fields, parse_signature_text
from bt_compiler.spec.types import Field, Type

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_SPLIT: Mapping[str, float] = {"train": 0.6, "dev": 0.2, "test": 0.2}


def build_sections(spec: Spec) -> Sections:
    """All settings of a spec with their defaults. Raises SpecError with every finding (BTC12x to BTC13x)."""
    findings = Findings(spec)
    named: dict[str, Type] | None = None
    try:
        named = named_types(spec)
    except SpecError as error:
        findings.items.extend(error.diagnostics)
    models = _models(spec, findings)
    outputs = output_names(spec, named or {})
    data = _data(spec, named, findings)
    retrievers = tuple(_retriever(spec, name) for name in spec.get(("retrievers",), {}))
    tools = build_tools(spec, named or {}, findings)
    metric = _metric(spec, ("metric",), outputs, findings)
    accept = (
        None
        if spec.get(("optimize", "accept", "metric")) is None
        else _metric(spec, ("optimize", "accept", "metric"), outputs, findings)
    )
    optimize = build_optimize(spec, models, accept, findings)
    if findings.items:
        raise SpecError(findings.sorted())
    return Sections(
        name=spec.get(("name",), default_name(spec.path)),
        models=models,
        data=data,
        retrievers=retrievers,
        metric=metric,
        optimize=optimize,
        tools=tools,
    )


def default_name(path: Path) -> str:
    """The file's name without its ending, as a name that can be a folder's."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "program"


def _models(spec: Spec, findings: Findings) -> tuple[ModelSection, ...]:
    named: Mapping[str, Any] = spec.get(("models",), {})
    models = [_model(spec, name, ("models", name), findings) for name in named]
    if spec.get(("model",)) is not None or not named:
        if "default" in named:
            findings.add(
                "BTC130",
                "`models.default` and `model` are the same model twice",
                ("models", "default"),
                key=True,
                help="remove one of them",
            )
        models.insert(0, _model(spec, "default", ("model",), findings))
    return tuple(models)


def _model(spec: Spec, name: str, place: Place, findings: Findings) -> ModelSection:
    written = spec.get(place, DEFAULT_MODEL)
    settings: dict[str, Any] = {"id": written} if isinstance(written, str) else dict(written)
    engine = settings.get("engine", "transformers")
    endpoints = tuple(settings.get("endpoints", ()))
    if engine == "openai" and not endpoints:
        help = "write `endpoints: [http://localhost:8000/v1]`"
        findings.add("BTC127", f"model `{name}` has the engine `openai` and no `endpoints`", place, key=True, help=help)
    if endpoints and engine != "openai":
        help = "write `engine: openai`, or remove the endpoints"
        findings.add("BTC127", f"the engine `{engine}` has no endpoints", (*place, "endpoints"), key=True, help=help)
    return ModelSection(
        name=name,
        id=_model_id(spec, place, settings.get("id", DEFAULT_MODEL), engine),
        engine=engine,
        revision=settings.get("revision"),
        endpoints=endpoints,
        api_key_env=settings.get("api_key", {}).get("env"),
        dtype=settings.get("dtype", "auto"),
        batch=settings.get("batch"),
        generation=Generation(**settings.get("generation", {})),
        span=spec.span(place),
    )


def _model_id(spec: Spec, place: Place, written: str, engine: str) -> str:
    """Absolute where a folder or file of that name lies beside the spec, or where it is written as a path."""
    if engine in REMOTE_ENGINES:
        return written
    at = (*place, "id") if isinstance(spec.get(place), Mapping) else place
    if spec.get(at) is None:
        return written
    path = Path(spec.file(at))
    if written.startswith(("/", "./", "../", "~/")) or _exists(path):
        return str(path)
    return written


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file system is no file's
        return False


def _data(spec: Spec, named: Mapping[str, Type] | None, findings: Findings) -> DataSection:
    written = spec.get(("data",))
    span = spec.span(("data",))
    if isinstance(written, str):
        source = SourceSection(path=spec.file(("data",)), span=span)
        return DataSection(path=source, split=DEFAULT_SPLIT, span=span)
    labels: list[Field] = []
    for name, node in written.get("labels", {}).items():
        try:
            labels += parse_fields({name: node}, named)
        except TypeSyntaxError as error:
            if named is None and error.unknown in spec.get(("types",)):
                continue  # what is wrong with that type has been said
            findings.items.append(type_finding(spec, ("data", "labels"), error))
    columns = written.get("columns", {})
    if "path" in written:
        source = SourceSection(
            path=spec.file(("data", "path")), limit=written.get("limit"), span=spec.span(("data", "path"))
        )
        split = written.get("split", DEFAULT_SPLIT)
        _check_split(split, findings)
        return DataSection(path=source, split=split, columns=columns, labels=tuple(labels), span=span)
    sources = {name: _source(spec, name, written.get("limit")) for name in ("train", "dev", "test") if name in written}
    return DataSection(
        train=sources["train"],
        dev=sources.get("dev"),
        test=sources.get("test"),
        columns=columns,
        labels=tuple(labels),
        span=span,
    )


def _source(spec: Spec, split: str, limit: int | None) -> SourceSection:
    place: Place = ("data", split)
    written = spec.get(place)
    if isinstance(written, str):
        return SourceSection(path=spec.file(place), limit=limit, span=spec.span(place))
    return SourceSection(
        path=spec.file((*place, "path")), limit=written.get("limit", limit), span=spec.span((*place, "path"))
    )


def _check_split(split: Mapping[str, float], findings: Findings) -> None:
    place: Place = ("data", "split")
    sizes = list(split.values())
    shares = all(size <= 1 for size in sizes)
    counts = all(size > 1 and float(size).is_integer() for size in sizes)
    if not shares and not counts:
        help = "write `{train: 50, dev: 50, test: 50}` or `{train: 0.6, dev: 0.2, test: 0.2}`"
        findings.add("BTC126", "`data.split` mixes numbers of rows and shares", place, help=help)
    elif shares and sum(sizes) > 1 + 1e-9:
        findings.add("BTC126", f"the shares of `data.split` add up to {sum(sizes):g}", place, help="they are 1 at most")


def _retriever(spec: Spec, name: str) -> RetrieverSection:
    place: Place = ("retrievers", name)
    written = spec.get(place)
    return RetrieverSection(
        name=name,
        kind=written["kind"],
        corpus=_corpus(spec, (*place, "corpus")) if "corpus" in written else None,
        k=written.get("k", 3),
        options={key: value for key, value in written.items() if key not in ("kind", "corpus", "k")},
        span=spec.span(place),
    )


def _corpus(spec: Spec, place: Place) -> CorpusSection:
    written = spec.get(place)
    if isinstance(written, str):
        return CorpusSection(path=spec.file(place), span=spec.span(place))
    return CorpusSection(**{**written, "path": spec.file((*place, "path"))}, span=spec.span((*place, "path")))


def output_names(spec: Spec, named: Mapping[str, Type]) -> list[str] | None:
    """The program's outputs as far as the text says them; None where lowering will say what is wrong."""
    program = spec.get(("program",))
    if program is not None:
        return list(program["out"])
    modules = spec.get(("modules",))
    if len(modules) != 1:
        return None
    signature = next(iter(modules.values()))["signature"]
    if isinstance(signature, str) and "->" not in signature:
        signature = spec.get(("signatures", signature))
    if isinstance(signature, Mapping):
        return list(signature["outputs"])
    if signature is None:
        return None
    try:
        return [field.name for field in parse_signature_text(signature, named).outputs]
    except TypeSyntaxError:
        return None


def _metric(spec: Spec, place: Place, outputs: list[str] | None, findings: Findings) -> MetricSection:
    written = spec.get(place)
    settings = {"kind": written} if isinstance(written, str) else dict(written)
    output = settings.get("output")
    if output is None and outputs is not None:
        if len(outputs) == 1:
            output = outputs[0]
        else:
            kind = settings["kind"] if len(settings["kind"]) <= 40 else "KIND"
            findings.add(
                "BTC124",
                f"`{'.'.join(map(str, place))}` does not say which of {len(outputs)} outputs it judges",
                place,
                help=f"write `{{kind: {kind}, output: {outputs[0]}}}`; "
                + did_you_mean("", outputs, what="the program's outputs"),
            )
    return MetricSection(
        kind=settings["kind"],
        output=output or "",
        label=settings.get("label", output or ""),
        options={key: value for key, value in settings.items() if key not in ("kind", "output", "label")},
        span=spec.span(place),
    )
