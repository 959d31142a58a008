"""Metrics that an installed package brings: a function under the entry-point group `bt_compiler.metrics`.

    [project.entry-points."bt_compiler.metrics"]
    politeness = "my_package.scores:politeness"

    def politeness(*, inputs, outputs, labels, steps, threshold=0.5) -> float: ...

A spec names the entry point (`kind: politeness`), never a path: what can run is decided by what is installed.
Parameters beyond the four are options of the spec. `politeness.binary = True` says that scores are 0 or 1 alone. What
the package prints goes to stderr, for stdout carries results.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bt_compiler.data.example import Example
from bt_compiler.engine.own_code import entry_code_digest
from bt_compiler.engine.trace import Trace
from bt_compiler.errors import ExampleError, SpecError
from bt_compiler.spec.sections import MetricSection

GROUP = "bt_compiler.metrics"
GIVEN = ("inputs", "outputs", "labels", "steps")
"""What every metric is called with, by keyword."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginMetric:
    """A function of an installed package as a metric."""

    kind: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    binary: bool = False

    def score(self, example: Example, trace: Trace) -> float:
        """See `Metric`. The function gets copies, for what it may sort in place is read by others after it.

        Raises `ExampleError` BTC356 where the function raises, gives no number, or, where it is binary, neither 0
        nor 1.
        """
        try:
            with redirect_stdout(sys.stderr):
                found = self.function(
                    inputs=deepcopy(example.inputs),
                    outputs=deepcopy(trace.outputs or {}),
                    labels=deepcopy(example.labels),
                    steps=deepcopy(trace.steps),
                    **{name: deepcopy(value) for name, value in self.options.items()},
                )
            if getattr(found, "ndim", None) == 0:  # a number of numpy or torch
                found = found.item()
        except (Exception, SystemExit) as error:  # from code of others: whatever it is, it is this example's failure
            raise ExampleError("BTC356", f"metric `{self.kind}` raised {type(error).__name__}: {error}") from error
        if not isinstance(found, bool | int | float):
            raise ExampleError("BTC356", f"metric `{self.kind}` gave {found!r:.60}, a number is expected")
        if self.binary and found not in (0, 1):
            message = f"metric `{self.kind}` gave {found}, though it says `binary = True`: 0 or 1 is expected"
            raise ExampleError("BTC356", message)
        return float(found)


def plugin_kinds() -> dict[str, EntryPoint]:
    """Name -> entry point of every metric that is installed, by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def plugin_package(kind: str) -> str | None:
    """The package that brings a metric, or None where no package does."""
    point = plugin_kinds().get(kind)
    return None if point is None or point.dist is None else point.dist.name


def plugin_code(kind: str) -> str | None:
    """Digest of the code behind an installed metric, which may change while its package's version does not; None where
    no package brings it.
    """
    point = plugin_kinds().get(kind)
    return None if point is None else entry_code_digest(point)


def build_plugin(section: MetricSection, point: EntryPoint) -> PluginMetric:
    """Imports the function. Raises SpecError BTC357 (cannot be imported or called), BTC351 (unknown option)."""
    try:
        with redirect_stdout(sys.stderr):
            function = point.load()
        parameters = inspect.signature(function).parameters
    except (Exception, SystemExit) as error:  # importing runs code of others: it is its package's mistake
        reason = f"{type(error).__name__}: {error}"
        raise _unusable(section, point, f"cannot be imported: {reason}") from error
    if inspect.iscoroutinefunction(function):
        raise _unusable(section, point, "is `async`: nothing awaits it, a metric is a plain function")
    named = {name for name, one in parameters.items() if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    missing = [name for name in GIVEN if name not in named and not open_ended]
    if missing:
        raise _unusable(section, point, f"takes no `{missing[0]}`")
    allowed = sorted(named - set(GIVEN))
    unknown = [name for name in section.options if name not in allowed and not open_ended]
    if unknown:
        shown = ", ".join(f"`{name}`" for name in allowed) or "no options"
        raise SpecError.of(
            "BTC351",
            f"metric `{section.kind}` has no option `{unknown[0]}`",
            span=section.span,
            help=f"it takes {shown}",
        )
    needed = [name for name in allowed if parameters[name].default is inspect.Parameter.empty]
    absent = [name for name in needed if name not in section.options]
    if absent:
        raise SpecError.of(
            "BTC352", f"option `{absent[0]}` of metric `{section.kind}` has to be given", span=section.span
        )
    return PluginMetric(
        kind=section.kind,
        function=function,
        options=dict(section.options),
        binary=bool(getattr(function, "binary", False)),
    )


def _unusable(section: MetricSection, point: EntryPoint, reason: str) -> SpecError:
    return SpecError.of(
        "BTC357",
        f"metric `{section.kind}` of `{point.value}` {reason}",
        span=section.span,
        help="a metric is a function with the keywords `inputs`, `outputs`, `labels` and `steps`",
    )
