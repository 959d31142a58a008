"""What search servers answer, as passages: each value is looked at before it becomes a part of one. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping
from sys import float_info
from typing import Any

from bt_compiler.engine.retrieval.template import filled, template_fields
from bt_compiler.engine.retrieval.wire import Wire
from bt_compiler.spec.sections import RetrieverSection


def results(answer: Any, key: str, wire: Wire, count: int) -> list[Any]:
    """The `count` results of one request. Raises BackendError BTC382."""
    found = answer.get(key) if isinstance(answer, Mapping) else None
    if not isinstance(found, list) or len(found) != count:
        raise wire.nonsense(f"answers without the {count} results in `{key}` that were asked for")
    return found


def maps(found: Any, wire: Wire) -> list[Mapping[str, Any]]:
    """The hits of one result. Raises BackendError BTC382."""
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise wire.nonsense("answers without a list of passages")
    return found


def stored_passage(section: RetrieverSection, wire: Wire, stored: Any, id: Any, score: Any) -> dict[str, Any]:
    """A passage of the fields that the server stores, by the section's `id`, `title` and `text`.

    Raises BackendError BTC382.
    """
    options = section.options
    if not isinstance(stored, Mapping):
        raise wire.nonsense("gives a passage without its stored fields")

    def value(name: str) -> str:
        if name not in stored:
            known = ", ".join(f"`{key}`" for key in sorted(stored)[:10]) or "none"
            raise wire.nonsense(f"gives a passage without the field `{name}`; its fields: {known}")
        return _as_text(name, stored[name], wire)

    template = str(options.get("text", "{text}"))
    text = filled(template, {name: value(name) for name in template_fields(template)})
    named = value(options["id"]) if "id" in options else _as_text("id", id, wire)
    title = value(options.get("title", "title")) if "title" in {*options, *stored} else ""
    return _passage(wire, named, title, text, score)


def headed_passage(wire: Wire, hit: Mapping[str, Any]) -> dict[str, Any]:
    """A passage of a text that begins with its title, `title | body`. Raises BackendError BTC382."""
    text = hit.get("text")
    if not isinstance(text, str):
        raise wire.nonsense("gives a passage without `text`")
    title = _as_text("title", hit.get("title"), wire) or (text.partition(" | ")[0] if " | " in text else "")
    return _passage(wire, _as_text("pid", hit.get("pid"), wire) or title or text, title, text, hit.get("score"))


def _passage(wire: Wire, id: str, title: str, text: str, score: Any) -> dict[str, Any]:
    if not id:
        raise wire.nonsense("gives a passage without an id")
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= float_info.max:
        raise wire.nonsense(f"gives `{score!r:.40}` as a passage's score")
    return {"id": id, "title": title, "text": text, "score": float(score)}


def _as_text(name: str, value: Any, wire: Wire) -> str:
    """As in a corpus file."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise wire.nonsense(f"gives a passage whose field `{name}` holds {kind}, not a text")
    return "" if value is None else str(value)
