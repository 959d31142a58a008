"""Whether the code that installed packages bring to a bundle, for its tools and metrics, is that of the compile.

A bundle holds none of it and knows digests alone. They are of whole packages, whose other parts may change for reasons
of their own, and one that is installed another way may have other files: so a difference is told and ends nothing, but
for a gate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bt_compiler.artifact.manifest import Manifest
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.engine.metrics.plugins import plugin_code
from bt_compiler.engine.tools.registry import tool_code
from bt_compiler.spec.sections import ToolSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedCode:
    """A tool or metric whose package has other code than at the compile; its version may be the same."""

    what: Literal["metric", "tool"]
    name: str
    """Of a tool as in the spec, of a metric its kind."""

    def finding(self, *, gate: bool) -> Diagnostic:
        """BTC578: a warning, or under a gate the error that no score can lift."""
        return Diagnostic(
            code="BTC578",
            message=f"the package of {self.what} `{self.name}` has other code than at the compile",
            severity="error" if gate else "warning",
            help="compile again with it as it is now, or install it as it was",
        )


def installed_code(tools: Iterable[ToolSection], metrics: Iterable[str]) -> dict[str, dict[str, str]]:
    """`metric` and `tool` -> name -> digest of the code of those that installed packages bring; none without any.

    Raises BackendError BTC543 where a tool is not there.
    """
    found = {
        "metric": {kind: plugin_code(kind) for kind in sorted(metrics)},
        "tool": {section.name: tool_code(section) for section in tools},
    }
    brought = {what: {name: code for name, code in by.items() if code is not None} for what, by in found.items()}
    return {what: by for what, by in brought.items() if by}


def changed_code(
    manifest: Manifest, *, tools: Iterable[ToolSection] = (), metrics: Iterable[str] = ()
) -> tuple[ChangedCode, ...]:
    """Those of `tools` and `metrics` whose code is another; none that the manifest does not know."""
    known, found = manifest.identity.get("code", {}), installed_code(tools, metrics)
    kinds: tuple[Literal["metric", "tool"], ...] = ("metric", "tool")
    return tuple(
        ChangedCode(what=what, name=name)
        for what in kinds
        for name, code in found.get(what, {}).items()
        if known.get(what, {}).get(name, code) != code
    )
