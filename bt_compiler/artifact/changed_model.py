"""Whether a server is asked for the model that the bundle was compiled on: its weights cannot be seen, its id can.

The same weights may be served under another name, and to try another model is a use of its own: so a difference is told
and ends nothing, not even a gate.
"""

from __future__ import annotations

from dataclasses import dataclass

from bt_compiler.artifact.digest import portable_model
from bt_compiler.artifact.manifest import Manifest
from bt_compiler.diagnostics import Diagnostic
from bt_compiler.spec.optimizing import REMOTE_ENGINES
from bt_compiler.spec.sections import ModelSection


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedModel:
    """A model that a server answers for, under another id than at the compile."""

    name: str
    """In the spec."""
    id: str
    before: str

    def finding(self, *, gate: bool) -> Diagnostic:
        """BTC577: a warning, under a gate too."""
        del gate
        return Diagnostic(
            code="BTC577",
            message=f"model `{self.name}` is `{self.id}`, the bundle was compiled on `{self.before}`",
            severity="warning",
            help="compile again on this model, unless its server only has another name for the same weights",
        )


def changed_model(manifest: Manifest, section: ModelSection) -> ChangedModel | None:
    """How `section` differs from the compile's model of its name; None where it does not, where the compile had no such
    model, and in this process, where weights are compared themselves (`check_base`).
    """
    known = manifest.models.get(section.name)
    if known is None or known.id == portable_model(section.id) or section.engine not in REMOTE_ENGINES:
        return None
    return ChangedModel(name=section.name, id=section.id, before=known.id)
