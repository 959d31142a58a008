"""What a `react` module has beside its signature: the tools and retrievers it may call, and how often.

Knows nothing of steps, nor of how a turn looks in a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bt_compiler.diagnostics import did_you_mean
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import FINISH, ToolRef
from bt_compiler.graph.ranking import ranking_module
from bt_compiler.graph.searches import QUERY, RETRIEVED
from bt_compiler.spec import Sections

_KEYS = ("tools", "at_most")
_SEARCH = "finds passages that fit the query"


class Reach(NamedTuple):
    """What a module may call, and how often."""

    tools: tuple[ToolRef, ...] = ()
    at_most: int = 0


def lower_reach(
    path: SpecPath, raw: Mapping[str, Any], kind: str | None, findings: Findings, sections: Sections
) -> Reach | None:
    """`tools` and `at_most` of the module at `path`; nothing for other kinds than `react`. None after findings."""
    name = path[-1]
    if kind is None:
        return None
    if kind != "react":
        for key in _KEYS:
            if key in raw:
                findings.add(
                    "BTC241",
                    f"a module of kind `{kind}` has no `{key}`",
                    (*path, key),
                    key=True,
                    help="write `kind: react` for a module that calls tools, or put the tool into a step of its own",
                )
        return None if any(key in raw for key in _KEYS) else Reach()
    missing = [key for key in _KEYS if key not in raw]
    if missing:
        findings.add(
            "BTC240",
            f"`react` module `{name}` lacks {' and '.join(f'`{key}`' for key in missing)}",
            path,
            key=True,
            help="write what it may call and how often: `tools: [calculator, wiki]`, `at_most: 4`",
        )
    known = _known(sections)
    for place, item in enumerate(raw.get("tools", ())):
        if item in {section.name for section in sections.retrievers if ranking_module(section) is not None}:
            findings.add(
                "BTC244",
                f"retriever `{item}` is ranked by a module, which is no tool",
                (*path, "tools", place),
                help="name the retriever below it, its `of`, or search in a step before this one",
            )
    tools = [_tool(item, (*path, "tools", place), findings, known) for place, item in enumerate(raw.get("tools", ()))]
    if missing or None in tools:
        return None
    return Reach(tuple(tool for tool in tools if tool is not None), raw["at_most"])


def _known(sections: Sections) -> Mapping[str, list[ToolRef]]:
    """By name the tools and retrievers that go by it."""
    found: dict[str, list[ToolRef]] = {}
    for tool in sections.tools:
        ref = ToolRef(
            name=tool.name, kind=tool.kind, inputs=tool.inputs, outputs=tool.outputs, description=tool.description
        )
        found.setdefault(tool.name, []).append(ref)
    for item in sections.retrievers:
        description = item.description or _SEARCH
        ref = ToolRef(
            name=item.name, kind=item.kind, inputs=QUERY, outputs=RETRIEVED, description=description, k=item.k
        )
        found.setdefault(item.name, []).append(ref)
    return found


def _tool(name: str, path: SpecPath, findings: Findings, known: Mapping[str, list[ToolRef]]) -> ToolRef | None:
    refs = known.get(name, [])
    if name == FINISH:
        findings.add(
            "BTC242",
            f"`{FINISH}` is what a `react` module itself calls to answer",
            path,
            help="take another name for the tool" if refs else "leave it out: it is always there",
        )
        return None
    if not refs:
        help = did_you_mean(name, known, what="tools and retrievers") if known else "declare it under `tools`"
        findings.add("BTC202", f"unknown tool or retriever `{name}`", path, help=help)
        return None
    if len(refs) > 1:
        findings.add("BTC243", f"`{name}` is a tool and a retriever", path, help="give one of them another name")
        return None
    return refs[0]
