"""What a prediction gives back: a mapping whose fields are attributes too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bt_compiler.engine.trace import Failure, Trace


class Outputs(Mapping[str, Any]):
    """The program's outputs by name: `answer["species"]`, `answer.species`, `dict(answer)`.

    A field called like a method of mappings (`items`) is reached with brackets.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and unpickling ask before there are values
            raise AttributeError(name)
        if name not in self._values:
            raise AttributeError(f"no output `{name}`; outputs: {', '.join(self._values)}")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Outputs({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


def finished(trace: Trace) -> Failure | dict[str, Any]:
    """Why the run failed, or what it gave. Raises RuntimeError for a trace that has neither: a bug."""
    if trace.error is not None:
        return trace.error
    if trace.outputs is None:
        raise RuntimeError(f"the trace of example {trace.example} has neither outputs nor an error")
    return dict(trace.outputs)
