"""What a `retrieve` step takes and gives: a query of one or more texts, and passages that it is not to bring again.

Knows nothing of retrievers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bt_compiler.graph.bindings import bind, bind_inputs
from bt_compiler.graph.findings import Findings, SpecPath
from bt_compiler.graph.program import Value
from bt_compiler.graph.scope import Scope
from bt_compiler.spec import Field
from bt_compiler.spec.types import PASSAGES, STR

RETRIEVED = (Field(name="passages", type=PASSAGES),)
"""What a retriever gives."""
QUERY = (Field(name="query", type=STR),)
"""What a retriever takes."""
KNOWN = (Field(name="known", type=PASSAGES),)
"""What a step that asks a retriever may take beside it."""


class Asked(NamedTuple):
    """What a search goes by."""

    query: tuple[Value, ...]
    """Texts, to be joined by one space."""
    known: Value | None


def bind_search(
    raw: Mapping[str, Any] | Sequence[str],
    *,
    what: str,
    step: str,
    path: SpecPath,
    scope: Scope,
    findings: Findings,
) -> Asked | None:
    """The inputs of the search `step` at `path`; its `query` may be a list, as the schema has it of at least one text.

    `what` names the retriever. None after findings.
    """
    listed = raw["query"] if isinstance(raw, Mapping) and isinstance(raw.get("query"), list) else []
    texts = [
        bind(
            node,
            QUERY[0],
            what=what,
            step=step,
            path=(*path, "in", "query", place),
            scope=scope,
            findings=findings,
        )
        for place, node in enumerate(listed)
    ]
    others = {name: node for name, node in raw.items() if name != "query"} if isinstance(raw, Mapping) else raw
    bound = bind_inputs(
        others if listed else raw,
        () if listed else QUERY,
        optional=KNOWN,
        what=what,
        step=step,
        path=path,
        scope=scope,
        findings=findings,
    )
    if bound is None or any(item is None for item in texts):
        return None
    given = [item for item in (*texts, *bound) if item is not None]
    return Asked(
        query=tuple(item.value for item in given if item.name == "query"),
        known=next((item.value for item in given if item.name == "known"), None),
    )
