"""Opens what a program needs to run beside its retrievers: models and tools, and closes them again.

The one place where sections of the spec become running parts. Knows nothing of optimising.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bt_compiler.engine.progress import Progress
from bt_compiler.engine.request import Backend
from bt_compiler.engine.tools import Tool, open_tools
from bt_compiler.spec.sections import ModelSection, ToolSection

Choices = Callable[[str, Callable[[], Any]], Any]
"""Gives an earlier choice of that name, or measures once."""
OpenBackend = Callable[[ModelSection, Choices], Backend]


def measured(name: str, measure: Callable[[], Any]) -> Any:
    """`Choices` without a memory."""
    del name
    return measure()


def backend_opener(cache_root: Path, progress: Progress) -> OpenBackend:
    """Opens backends as the spec names them."""

    def opened(section: ModelSection, choices: Choices) -> Backend:
        from bt_compiler.engine.backends import open_backend

        return open_backend(section, cache_root=cache_root, choices=choices, progress=progress)

    return opened


@contextmanager
def open_models(
    sections: Iterable[ModelSection], *, choices: Choices, opener: OpenBackend
) -> Iterator[Mapping[str, Backend]]:
    """The backends by name in the spec; choices get the model's name in front. Closes them at the end."""
    with ExitStack() as stack:
        backends: dict[str, Backend] = {}
        for section in sections:
            backends[section.name] = opener(section, _named(section.name, choices))
            stack.callback(backends[section.name].close)
        yield backends


@contextmanager
def running_tools(sections: Iterable[ToolSection], *, file: Path | None) -> Iterator[Mapping[str, Tool]]:
    """The tools by name; ends their processes at the end. Raises BackendError."""
    tools = open_tools(sections, file=file)
    try:
        yield tools
    finally:
        for tool in tools.values():
            tool.close()


def _named(model: str, choices: Choices) -> Choices:
    return lambda name, measure: choices(f"{model}: {name}", measure)
