"""From the validated document to typed settings: the one reader of everything in a spec that is not structure.

It fills in defaults and says what a schema cannot: rules between keys. It knows nothing of how settings are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bt_compiler.errors import SpecError
from bt_compiler.spec.declared import named_types
from bt_compiler.spec.document import Spec
from bt_compiler.spec.judging import build_metric_section, judging_modules
from bt_compiler.spec.optimizing import Findings, build_optimize
from bt_compiler.spec.sections import (
    LORA_RANKS,
    Generation,
    ModelSection,
    Price,
    Sections,
    VllmSection,
    WeightsSection,
)
from bt_compiler.spec.sourcing import build_data, build_retrievers, model_id
from bt_compiler.spec.tools import build_tools
from bt_compiler.spec.tree import Place
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_signature_text
from bt_compiler.spec.types import Type

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def build_sections(spec: Spec) -> Sections:
    """All settings of a spec with their defaults. Raises SpecError with every finding (BTC12x to BTC14x)."""
    findings = Findings(spec)
    named: dict[str, Type] | None = None
    try:
        named = named_types(spec)
    except SpecError as error:
        findings.items.extend(error.diagnostics)
    models = _models(spec, findings)
    outputs = output_names(spec, named or {})
    data = build_data(spec, named, findings)
    retrievers = build_retrievers(spec, findings)
    tools = build_tools(spec, named or {}, findings)
    metric = build_metric_section(spec, ("metric",), outputs, findings)
    accept = (
        None
        if spec.get(("optimize", "accept", "metric")) is None
        else build_metric_section(spec, ("optimize", "accept", "metric"), outputs, findings)
    )
    optimize = build_optimize(spec, models, accept, findings, judges=judging_modules(spec))
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
    if "weights" in settings and engine != "openai":
        help = "write `engine: openai`, or remove `weights`: other engines train on the weights that they run"
        findings.add("BTC590", f"the engine `{engine}` takes no `weights`", (*place, "weights"), key=True, help=help)
    return ModelSection(
        name=name,
        id=model_id(spec, place, settings.get("id", DEFAULT_MODEL), engine),
        engine=engine,
        revision=settings.get("revision"),
        endpoints=endpoints,
        api_key_env=settings.get("api_key", {}).get("env"),
        dtype=settings.get("dtype", "auto"),
        batch=settings.get("batch"),
        weights=model_id(spec, (*place, "weights"), settings["weights"]) if "weights" in settings else None,
        vllm=_vllm(spec, settings.get("vllm", {}), engine, (*place, "vllm"), findings),
        generation=Generation(**settings.get("generation", {})),
        price=Price(**settings["price"]) if "price" in settings else None,
        span=spec.span(place),
    )


def _vllm(spec: Spec, settings: Mapping[str, Any], engine: str, place: Place, findings: Findings) -> VllmSection | None:
    """None for other engines. Findings BTC590 (options of another engine), BTC591 (ranks that do not fit)."""
    if engine != "vllm":
        if settings:
            help = "write `engine: vllm`, or remove `vllm`"
            findings.add("BTC590", f"the engine `{engine}` takes no `vllm`", place, key=True, help=help)
        return None
    rank = spec.get(("optimize", "weights", "r"), WeightsSection().r)
    enough = next((known for known in LORA_RANKS if known >= rank), None)
    if "weights" not in spec.get(("optimize", "strategy"), ("weights",)):
        pass  # a sweep has strategies of its own: room for their adapters is made all the same
    elif enough is None:
        findings.add(
            "BTC591",
            f"vLLM runs no adapters of rank {rank}",
            ("optimize", "weights", "r"),
            help=f"the highest rank is {LORA_RANKS[-1]}",
        )
    elif settings.get("max_lora_rank", enough) < rank:
        findings.add(
            "BTC591",
            f"adapters of rank {rank} are more than `max_lora_rank: {settings['max_lora_rank']}` lets through",
            (*place, "max_lora_rank"),
            help=f"write `max_lora_rank: {enough}`, remove it, or lower `optimize.weights.r`",
        )
    return VllmSection(**{"max_lora_rank": enough or LORA_RANKS[-1], **settings})


def output_names(spec: Spec, named: Mapping[str, Type]) -> list[str] | None:
    """The program's outputs as far as the text says them; None where lowering will say what is wrong."""
    program = spec.get(("program",))
    if program is not None:
        return list(program["out"])
    judges = judging_modules(spec)
    modules = [module for name, module in spec.get(("modules",)).items() if name not in judges]
    if len(modules) != 1:
        return None
    signature = modules[0]["signature"]
    if isinstance(signature, str) and "->" not in signature:
        signature = spec.get(("signatures", signature))
    if isinstance(signature, Mapping):
        outputs = signature["outputs"].items()
        return [name for name, type in outputs if not (isinstance(type, Mapping) and "probability_of" in type)]
    if signature is None:
        return None
    try:
        return [field.name for field in parse_signature_text(signature, named).outputs]
    except TypeSyntaxError:
        return None
