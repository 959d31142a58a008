"""Texts with names of fields in braces: `{title} | {text}`, a literal brace written twice. Knows no rows.

`str.format` is not used to fill them: it takes `{1}` for a place in a list, and `{a.b}` for an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter


def template_fields(template: str) -> tuple[str, ...]:
    """The names in braces, each once. Raises ValueError with words on what cannot be read."""
    parts = [part for part in Formatter().parse(template) if part[1] is not None]
    for _, name, form, conversion in parts:
        if not name or form or conversion or set(name) & set(".["):
            raise ValueError(f"`{{{name}}}` is not the name of a column")
    if not parts:
        raise ValueError("it names no column, so every passage would be the same")
    return tuple(dict.fromkeys(name for _, name, _, _ in parts if name))


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields' values. Raises KeyError for a field without one."""
    return "".join(
        literal + ("" if name is None else values[name]) for literal, name, _, _ in Formatter().parse(template)
    )
