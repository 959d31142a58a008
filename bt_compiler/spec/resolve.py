"""The document with every default written out, as it goes into a bundle, and its part that no machine changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bt_compiler.spec.build import build_sections
from bt_compiler.spec.document import Spec
from bt_compiler.spec.optimizing import OF_ADAPTERS
from bt_compiler.spec.sections import (
    Condition,
    DataSection,
    MetricSection,
    ModelSection,
    OptimizeSection,
    RetrieverSection,
    SourceSection,
)


def resolve(spec: Spec) -> dict[str, Any]:
    """See `Spec.resolved`. What has no default value (no limit, no revision) is left out."""
    sections = build_sections(spec)
    names = [model.name for model in sections.models]
    written: dict[str, Any] = {"version": 1, "name": sections.name}
    if "default" in names and "default" not in spec.get(("models",), {}):
        written["model"] = _model(sections.models[0])
    if spec.get(("models",)) is not None:
        written["models"] = {
            model.name: _model(model) for model in sections.models if model.name in spec.get(("models",))
        }
    written["data"] = _data(spec, sections.data)
    for section in ("types", "signatures"):
        if spec.get((section,)) is not None:
            written[section] = spec.get((section,))
    if sections.retrievers:
        written["retrievers"] = {retriever.name: _retriever(retriever) for retriever in sections.retrievers}
    if sections.tools:
        written["tools"] = {
            tool.name: {**spec.get(("tools", tool.name)), "time_limit": tool.time_limit} for tool in sections.tools
        }
    by_name = {model.name: model for model in sections.models}
    written["modules"] = {name: _module(spec, name, by_name, names[0]) for name in spec.get(("modules",))}
    if spec.get(("program",)) is not None:
        written["program"] = spec.get(("program",))
    written["metric"] = _metric(sections.metric)
    written["optimize"] = _optimize(sections.optimize)
    return written


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value is not None and value != {} and value != ()
    }


def _model(model: ModelSection) -> dict[str, Any]:
    return _given(
        {
            "id": model.id,
            "engine": model.engine,
            "revision": model.revision,
            "endpoints": model.endpoints,
            "api_key": {"env": model.api_key_env} if model.api_key_env else None,
            "dtype": model.dtype,
            "batch": model.batch,
            "weights": model.weights,
            "vllm": None if model.vllm is None else _given(asdict(model.vllm)),
            "generation": asdict(model.generation),
            "price": asdict(model.price) if model.price is not None else None,
        }
    )


def _data(spec: Spec, data: DataSection) -> dict[str, Any]:
    written = spec.get(("data",))
    labels = written.get("labels", {}) if isinstance(written, dict) else {}
    rest = {"stratify": data.stratify, "columns": _columns(data), "labels": labels}
    if data.path is not None:
        return _given({**_source(data.path), "split": dict(data.split), **rest})
    sources = {"train": data.train, "dev": data.dev, "test": data.test}
    return _given({**{name: _source(source) for name, source in sources.items() if source is not None}, **rest})


def _columns(data: DataSection) -> dict[str, Any]:
    columns: dict[str, Any] = dict(data.columns)
    for name, how in data.extract.items():
        columns[name] = _given({"column": data.columns[name], "match": how.match, "number_after": how.number_after})
    return columns


def _source(source: SourceSection) -> dict[str, Any]:
    sample = None if source.sample is None else {"rows": source.sample, "seed": source.seed}
    return _given({"path": source.path, "limit": source.limit, "where": _where(source.where), "sample": sample})


def _where(conditions: Sequence[Condition]) -> dict[str, Any]:
    return {condition.column: _condition(condition) for condition in conditions}


def _condition(condition: Condition) -> Any:
    if condition.among:
        return list(condition.among)
    return _given({"not": condition.excluded, "min": condition.least, "max": condition.most})


def _retriever(retriever: RetrieverSection) -> dict[str, Any]:
    corpus = retriever.corpus
    described = None
    if corpus is not None:
        described = _given({"path": corpus.path, "id": corpus.id, "title": corpus.title, "text": corpus.text})
        described |= _given({"where": _where(corpus.where)})
    head = {"kind": retriever.kind, "corpus": described, "of": retriever.of, "k": retriever.k}
    head |= {"description": retriever.description}
    return {**_given(head), **retriever.options}  # an option that is null says something: `stemmer: null`


def _module(spec: Spec, name: str, models: Mapping[str, ModelSection], default: str) -> dict[str, Any]:
    written = spec.get(("modules", name))
    model = written.get("model", default)
    generation = asdict(models[model].generation) if model in models else {}
    return {
        "kind": written.get("kind", "predict"),
        "signature": written["signature"],
        **({"model": model} if model in spec.get(("models",), {}) else {}),
        "generation": {**generation, **written.get("generation", {})},
        "format": _format(spec, name),
        "train": list(written.get("train", ("prompt", "weights"))),
        **{key: written[key] for key in ("demos", "tools", "at_most") if key in written},
    }


def _format(spec: Spec, module: str) -> str:
    own = ("modules", module, "format")
    place = own if spec.get(own) is not None else ("format",)
    name: str = spec.get(place, "fields")
    return spec.file(place) if name.endswith(".jinja") else name


def _metric(metric: MetricSection) -> dict[str, Any]:
    named = {"kind": metric.kind, "output": metric.output or None, "label": metric.label or None}
    parts = [{**_metric(part), "weight": part.weight} for part in metric.parts]
    return _given({**named, **metric.options, "parts": tuple(parts)})


def _optimize(optimize: OptimizeSection) -> dict[str, Any]:
    accept = {"at_least": optimize.accept.at_least}
    metric = optimize.accept.metric
    silent = OF_ADAPTERS if optimize.weights.method == "full" else ()
    weights = _given(asdict(optimize.weights))
    if optimize.weights.launch is not None:
        weights["launch"] = _given(asdict(optimize.weights.launch))
    return {
        "strategy": list(optimize.strategy),
        "prompts": _given(asdict(optimize.prompts)),
        "weights": {key: value for key, value in weights.items() if key not in silent},
        "accept": accept if metric is None else {"metric": _metric(metric), **accept},
    }


def read_settings(optimize: Mapping[str, Any], strategy: Sequence[str]) -> dict[str, Any]:
    """`optimize` of an identity as the steps of `strategy` read it: where no step does, the defaults stand."""
    defaults = _optimize(OptimizeSection())
    unread = {kind: defaults[kind] for kind in ("prompts", "weights") if kind not in strategy}
    if "prompts" in unread and "weights" in strategy:  # which scores new weights on the inner split
        split = {key: optimize["prompts"][key] for key in ("train", "val") if key in optimize["prompts"]}
        unread["prompts"] = {**unread["prompts"], **split}
    return {**optimize, **unread}


def identity(spec: Spec) -> dict[str, Any]:
    """See `Spec.identity`. Of a path its last part stays where it says which of several things is meant."""
    document = resolve(spec)
    if "model" in document:
        document["model"] = _model_identity(document["model"])
    if "models" in document:
        document["models"] = {name: _model_identity(model) for name, model in document["models"].items()}
    data = document["data"]
    document["data"] = {
        key: _without_file(value) if key in ("train", "dev", "test") else value
        for key, value in _without_file(data).items()
    }
    if "retrievers" in document:
        document["retrievers"] = {
            name: _retriever_identity(retriever) for name, retriever in document["retrievers"].items()
        }
    for module in document["modules"].values():
        module["format"] = _last_part(module["format"])
    if "config" in document["optimize"]["weights"].get("launch", {}):
        launch = document["optimize"]["weights"]["launch"]
        launch["config"] = _last_part(launch["config"])
    return document


def _model_identity(model: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ["endpoints", "api_key", "price", "weights", "vllm"]
    if model["engine"] == "openai":
        left_out.append("batch")  # of a server it is how many requests are in flight, elsewhere rows computed together
    kept = {key: value for key, value in model.items() if key not in left_out}
    length = model.get("vllm", {}).get("max_model_len")  # the one setting of vLLM that decides what fails
    return {**kept, "id": _last_part(kept["id"]), **({"max_model_len": length} if length is not None else {})}


def _retriever_identity(retriever: Mapping[str, Any]) -> dict[str, Any]:
    """Without the corpus' path and the server's URL: the digest that stands beside this speaks of them."""
    kept = {key: value for key, value in retriever.items() if key != "endpoint"}
    if "corpus" in kept:
        kept["corpus"] = _without_file(kept["corpus"])
    return {**kept, "model": _last_part(kept["model"])} if "model" in kept else kept


def _without_file(source: Mapping[str, Any]) -> dict[str, Any]:
    at_place = Path(str(source.get("path", "")).removeprefix("hf://")).is_absolute()
    return {key: value for key, value in source.items() if key != "path" or not at_place}


def _last_part(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name
