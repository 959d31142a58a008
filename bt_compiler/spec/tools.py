"""The `tools` section: what each kind takes and gives. Part of the one reader of settings (`build`).

The two kinds that come with btc have fixed inputs and outputs; those of a person's own functions are declared in the
spec, so that a program type-checks without running anybody's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.spec.declared import type_finding
from bt_compiler.spec.document import Spec
from bt_compiler.spec.optimizing import Findings
from bt_compiler.spec.sections import ToolSection
from bt_compiler.spec.tree import Place
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_fields
from bt_compiler.spec.types import FLOAT, STR, Field, Type

Fields = tuple[Field, ...]


class _Kind(NamedTuple):
    inputs: Fields | None
    """None: the spec declares inputs and outputs."""
    outputs: Fields | None
    option: str | None
    """The one key of its own."""
    description: str | None = None
    """Where the spec gives none."""


_ARITHMETIC = "works out an expression such as 3 + 4 * 5"
KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "calculator": _Kind(
            (Field(name="expression", type=STR),), (Field(name="result", type=FLOAT),), None, _ARITHMETIC
        ),
        "split_text": _Kind(
            (Field(name="text", type=STR),),
            (Field(name="chunks", type=Type(kind="list", item=STR)),),
            "words",
            "cuts a text into chunks",
        ),
        "entry_point": _Kind(None, None, "entry"),
        "function": _Kind(None, None, "function"),
    }
)


def build_tools(spec: Spec, named: Mapping[str, Type], findings: Findings) -> tuple[ToolSection, ...]:
    """Every entry of `tools`; findings BTC131, BTC132 and those of types are added to `findings`."""
    found = (_tool(spec, name, named, findings) for name in spec.get(("tools",), {}))
    return tuple(tool for tool in found if tool is not None)


def _tool(spec: Spec, name: str, named: Mapping[str, Type], findings: Findings) -> ToolSection | None:
    place: Place = ("tools", name)
    written: Mapping[str, Any] = spec.get(place)
    kind = KINDS.get(written["kind"])
    if kind is None:
        way = did_you_mean(written["kind"], KINDS, what="kinds of tools")
        if written["kind"] == "retriever":
            way = "a retriever is no entry of `tools`: a `react` module names it as it names a tool"
        findings.add("BTC131", f"unknown kind `{written['kind']}` of tool `{name}`", (*place, "kind"), help=way)
        return None
    allowed = {
        "kind",
        "description",
        "time_limit",
        kind.option,
        *(("inputs", "outputs") if kind.inputs is None else ()),
    }
    for key in written:
        if key not in allowed:
            help = (
                f"leave it out: what a `{written['kind']}` takes and gives is fixed" if key.endswith("puts") else None
            )
            findings.add(
                "BTC132", f"a tool of kind `{written['kind']}` has no `{key}`", (*place, key), key=True, help=help
            )
    inputs = kind.inputs or _fields(spec, (*place, "inputs"), named, findings)
    outputs = kind.outputs or _fields(spec, (*place, "outputs"), named, findings)
    if inputs is None or outputs is None:
        return None
    return ToolSection(
        name=name,
        kind=written["kind"],
        description=written.get("description", kind.description),
        inputs=inputs,
        outputs=outputs,
        time_limit=float(written.get("time_limit", 10)),
        option=None if kind.option is None else written.get(kind.option, None if kind.option == "words" else name),
        span=spec.span(place),
    )


def _fields(spec: Spec, place: Place, named: Mapping[str, Type], findings: Findings) -> Fields | None:
    written = spec.get(place)
    if written is None:
        help = "write what the function takes and gives: `inputs: {city: str}`, `outputs: {degrees: float}`"
        findings.add("BTC132", f"tool `{place[1]}` declares no `{place[-1]}`", place[:-1], key=True, help=help)
        return None
    try:
        return parse_fields(written, named)
    except TypeSyntaxError as error:
        findings.items.append(type_finding(spec, place, error))
        return None
