"""The spec's own types, read from its `types` section in the order of their references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bt_compiler.diagnostics import Diagnostic
from bt_compiler.errors import SpecError
from bt_compiler.spec.document import Spec
from bt_compiler.spec.tree import Place
from bt_compiler.spec.type_syntax import BUILT_IN, TypeSyntaxError, parse_type
from bt_compiler.spec.types import Type


def named_types(spec: Spec) -> dict[str, Type]:
    """Every entry of `types` by name. Raises SpecError with every finding (BTC120 to BTC123)."""
    declared: Mapping[str, Any] = spec.get(("types",), {})
    findings = [
        Diagnostic(
            code="BTC123",
            message=f"`{name}` is a type that every spec knows",
            span=spec.span(("types", name), key=True),
            help="give yours another name",
        )
        for name in declared
        if name in BUILT_IN
    ]
    reader = _Reader(declared)
    types: dict[str, Type] = {}
    for name in declared:
        try:
            types[name] = reader.read(name)
        except TypeSyntaxError as error:
            if error not in reader.reported:
                reader.reported.append(error)
                findings.append(type_finding(spec, ("types", reader.failed[name]), error))
    if findings:
        raise SpecError(findings)
    return types


def type_finding(spec: Spec, place: Place, error: TypeSyntaxError) -> Diagnostic:
    """A type that cannot be read, at its place."""
    code = error.code or ("BTC121" if error.unknown else "BTC120")
    return Diagnostic(code=code, message=error.message, help=error.help, span=spec.span((*place, *error.path)))


class _Reader:
    """Reads types on demand; a name that is not there yet is read first."""

    def __init__(self, declared: Mapping[str, Any]) -> None:
        self.failed: dict[str, str] = {}
        """Type that cannot be read -> the type that is to blame."""
        self.reported: list[TypeSyntaxError] = []
        self._declared = declared
        self._done: dict[str, Type] = {}
        self._errors: dict[str, TypeSyntaxError] = {}
        self._open: list[str] = []

    def read(self, name: str) -> Type:
        """The type of that name. Raises TypeSyntaxError, the same again for whatever depends on it."""
        if name in self._errors:
            raise self._errors[name]
        while name not in self._done:
            try:
                read = parse_type(self._declared[name], self._done)
                self._done[name] = replace(read, name=name)
            except TypeSyntaxError as error:
                if error.unknown is None or error.unknown not in self._declared or error.unknown in BUILT_IN:
                    raise self._fail(name, error, name) from error
                self._read_first(name, error.unknown, error)
        return self._done[name]

    def _read_first(self, name: str, needed: str, error: TypeSyntaxError) -> None:
        if needed == name or needed in self._open:
            loop = " -> ".join([*self._open, name, needed] if needed != name else [name, name])
            message = f"type `{needed}` holds itself: {loop}"
            help = "a type is written out in full; recursion has no end for a prompt"
            raise self._fail(name, TypeSyntaxError(message, help, error.path, code="BTC122"), name) from error
        self._open.append(name)
        try:
            self.read(needed)
        except TypeSyntaxError as cause:
            raise self._fail(name, cause, self.failed.get(needed, needed)) from error
        finally:
            self._open.pop()

    def _fail(self, name: str, error: TypeSyntaxError, blamed: str) -> TypeSyntaxError:
        self._errors[name] = error
        self.failed[name] = blamed
        return error
