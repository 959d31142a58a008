"""What steps take: the values of `in`, `out`, `carry` and `until`, resolved and checked against the expected types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import Binding, Constant, Value
from bt_compiler.graph.scope import Resolved, Scope, also_gives, is_reference, resolve
from bt_compiler.spec import Field, Type, assignable, convert, show_type


def bind_inputs(
    raw: Mapping[str, Any] | Sequence[str] | None,
    expected: Sequence[Field] | None,
    *,
    what: str,
    step: str,
    path: SpecPath,
    scope: Scope,
    findings: Findings,
    optional: Sequence[Field] = (),
) -> tuple[Binding, ...] | None:
    """The inputs of `step` at `path`, in the order of `expected`, then those `optional` ones that are given. `what`
    names who expects them (`module `m``).

    `expected` None: the callee is unknown, references are resolved all the same. None after findings.
    """
    given = _given(raw, (*path, "in"))
    fields = {item.name: item for item in (*(expected or ()), *optional)}
    bound: dict[str, Binding | None] = {}
    for name, (node, at) in given.items():
        if expected is not None and name not in fields:
            help = did_you_mean(name, fields, what="inputs")
            findings.add("BTC205", f"{what} has no input `{name}`", at, key=not isinstance(raw, Sequence), help=help)
            continue
        bound[name] = bind(node, fields.get(name), what=what, step=step, path=at, scope=scope, findings=findings)
    missing = [item for item in expected or () if item.name not in given]
    misspelt = [close for name in given if name not in fields for close in get_close_matches(name, fields, 1)]
    if any(item.name not in misspelt for item in missing):
        _add_missing(missing, what, path, raw, scope, findings)
    if expected is None or missing or any(item is None for item in bound.values()):
        return None
    return tuple(item for name in fields if (item := bound.get(name)) is not None)


def _given(raw: Mapping[str, Any] | Sequence[str] | None, path: SpecPath) -> dict[str, tuple[Any, SpecPath]]:
    """By name (node, its path); the list form `[a, b]` binds same-named values."""
    if raw is None:
        return {}
    if isinstance(raw, Mapping):
        return {name: (node, (*path, name)) for name, node in raw.items()}
    return {name.removeprefix("$"): (f"${name.removeprefix('$')}", (*path, i)) for i, name in enumerate(raw)}


def _add_missing(
    missing: Sequence[Field],
    what: str,
    path: SpecPath,
    raw: Mapping[str, Any] | Sequence[str] | None,
    scope: Scope,
    findings: Findings,
) -> None:
    shown = ", ".join(f"`{item.name}: {show_type(item.type)}`" for item in missing)
    values = scope.visible_values()
    lines = ", ".join(f"`{item.name}: ${item.name if item.name in values else '…'}`" for item in missing)
    place = path if raw is None else (*path, "in")
    findings.add("BTC204", f"{what} lacks {shown}", place, key=raw is None, help=f"add {lines} to `in`")


def bind(
    node: Any, field: Field | None, *, what: str, step: str, path: SpecPath, scope: Scope, findings: Findings
) -> Binding | None:
    """One input: `field` with the reference or constant at `path`. `field` None: of an unknown callee. None after
    findings.
    """
    if is_reference(node):
        found = resolve(node, scope, step, path, findings)
        if found is None or field is None or found.type is None:
            return None
        if not assignable(found.type, field.type):
            _add_wrong_type(found, field, what, path, scope, findings)
            return None
        return Binding(name=field.name, value=found.ref, type=field.type)
    if field is None:
        return None
    value = constant(node, field.type, path, findings, what=f"input `{field.name}` of {what}")
    return None if value is None else Binding(name=field.name, value=value, type=field.type)


def _add_wrong_type(found: Resolved, field: Field, what: str, path: SpecPath, scope: Scope, findings: Findings) -> None:
    assert found.type is not None
    got = show_type(found.type)
    source = str(found.ref).removeprefix("$")
    findings.add(
        "BTC203",
        f"input `{field.name}` of {what} expects `{show_type(field.type)}`, got `{got}`",
        path,
        help=also_gives(found.ref, scope, field.type),
        label=f"`{source}` is `{got}`",
    )


def constant(node: Any, type: Type, path: SpecPath, findings: Findings, *, what: str) -> Constant | None:
    """A value written in place, converted to `type`; `$$` becomes one dollar."""
    value = node[1:] if isinstance(node, str) and node.startswith("$$") else node
    try:
        return Constant(value=convert(value, type))
    except ValueError as error:
        findings.add(
            "BTC217",
            f"{what} expects `{show_type(type)}`: {error}",
            path,
            help="a reference starts with a dollar: `$step.field`" if isinstance(node, str) else None,
        )
        return None


def bind_outputs(
    raw: Mapping[str, Any], *, path: SpecPath, scope: Scope, findings: Findings
) -> tuple[Binding, ...] | None:
    """`out`: names bound to references of the body, with the types these have. None after findings."""
    bound: list[Binding | None] = []
    for name, node in raw.items():
        at = (*path, name)
        if not is_reference(node):
            findings.add("BTC216", f"`out` takes references, got `{node}`", at, help="write `$step.field`")
            bound.append(None)
            continue
        found = resolve(node, scope, None, at, findings)
        unknown = found is None or found.type is None
        bound.append(None if unknown else Binding(name=name, value=found.ref, type=found.type))  # type: ignore
    return None if any(item is None for item in bound) else tuple(item for item in bound if item is not None)


def reference_or_constant(
    node: Any, type: Type, *, what: str, step: str | None, path: SpecPath, scope: Scope, findings: Findings
) -> Value | None:
    """A value that has to fit `type`, for places that are not inputs (`carry`)."""
    if not is_reference(node):
        return constant(node, type, path, findings, what=what)
    found = resolve(node, scope, step, path, findings)
    if found is None or found.type is None:
        return None
    if not assignable(found.type, type):
        findings.add(
            "BTC214",
            f"{what} expects `{show_type(type)}`, got `{show_type(found.type)}`",
            path,
            help=also_gives(found.ref, scope, type),
        )
        return None
    return found.ref
