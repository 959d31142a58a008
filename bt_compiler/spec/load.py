"""A spec file to a `Spec`: read, merge, validate. Every error of a phase at once; the next phase needs this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bt_compiler.errors import SpecError
from bt_compiler.spec.document import Spec
from bt_compiler.spec.overlay import merged
from bt_compiler.spec.schema import check_shape
from bt_compiler.spec.tree import plain


def load_spec(path: Path, *, overrides: Sequence[str] = ()) -> Spec:
    """The spec at `path` with the files it extends and the `--set` arguments `overrides` (`a.b=value`).

    Raises SpecError with all findings of the phase that found any: reading and YAML (BTC0xx), then shape (BTC1xx).
    """
    layers = merged(path, overrides)
    document = plain(layers.tree)
    findings = check_shape(layers.tree, document)
    if findings:
        raise SpecError(findings)
    return Spec(
        path=path.absolute(), tree=layers.tree, document=document, sources=layers.sources, folders=layers.folders
    )
