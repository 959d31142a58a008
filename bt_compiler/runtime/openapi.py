"""The server's OpenAPI document: routes by the program's JSON Schema, each named type in one place under its name.

Generators of clients make a class of a named type: written out at every use, it would be several of one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bt_compiler.canonical import canonical_json
from bt_compiler.runtime.predictor import Predictor
from bt_compiler.spec import Field, Type, json_schema, json_schema_of_fields


def _object(properties: Mapping[str, Any], *, optional: str = "") -> dict[str, Any]:
    required = [name for name in properties if name != optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _map(values: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


_STRING = {"type": "string"}
_NODE = {"type": ["string", "null"], "description": "step of the program that failed"}
_ERROR = _object({"error": _object({"code": _STRING, "message": _STRING, "node": _NODE}, optional="node")})
_PLACE = _list({"type": ["string", "integer"]})
_INVALID = _object({"detail": _list(_object({"loc": _PLACE, "msg": _STRING, "type": _STRING, "code": _STRING}))})
_SCHEMA = {"type": "object", "description": "JSON Schema"}
_BUNDLE = _object(
    {
        **{key: _STRING for key in ("name", "digest", "predict")},
        **{key: _map(_STRING) for key in ("inputs", "outputs", "models")},
        "schema": _object({"inputs": _SCHEMA, "outputs": _SCHEMA}),
    }
)
_STATES = _object({"bundles": _map({"type": "string", "enum": ["loading", "ready"]})})
PAGES: Mapping[str, Mapping[int, tuple[str, Mapping[str, Any]]]] = {
    "/": {200: ("the bundles", _object({"bundles": _list(_BUNDLE)}))},
    "/healthz": {200: ("the server runs", _object({"status": {"type": "string", "enum": ["ok"]}}))},
    "/readyz": {200: ("every model is loaded", _STATES), 503: ("a model is being loaded", _STATES)},
}
"""What each path says: by status, in words and as JSON Schema."""


class _Form(NamedTuple):
    """A named type as one bundle takes or gives it: inputs may leave out what takes null."""

    bundle: str
    given: bool
    type: Type

    @property
    def name(self) -> str:
        """`CustomerInput` where what is given may have another form than what is returned."""
        same = not self.given or json_schema(self.type, given=True) == json_schema(self.type)
        return f"{self.type.name}{'' if same else 'Input'}"

    @property
    def schema(self) -> str:
        return canonical_json(json_schema(self.type, given=self.given))


class NamedTypes:
    """The components of the document: every named type of the bundles, in each of its forms."""

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        """`predictors` by the name of their bundle, which goes before the name of a type that another has otherwise."""
        forms = list(dict.fromkeys(form for name, one in predictors.items() for form in _forms(name, one)))
        meanings: dict[str, set[str]] = {}
        for form in forms:
            meanings.setdefault(form.name, set()).add(form.schema)
        self._names: dict[_Form, str] = {}
        taken: dict[str, str] = {}
        for form in forms:
            wanted = form.name if len(meanings[form.name]) == 1 else f"{form.bundle}_{form.name}"
            name = stem = re.sub(r"[^A-Za-z0-9._-]", "_", wanted)  # all that OpenAPI allows
            number = 2
            while taken.setdefault(name, form.schema) != form.schema:
                name, number = f"{stem}_{number}", number + 1
            self._names[form] = name
        self.schemas = {name: self._written(form) for form, name in self._names.items()}
        """By name, as `components/schemas` has them."""

    def schema_of(self, fields: Iterable[Field], *, bundle: str, given: bool = False) -> dict[str, Any]:
        """As `json_schema_of_fields`, with references to what is in `schemas`."""
        return json_schema_of_fields(list(fields), given=given, refer=lambda t: self._address(bundle, given, t))

    def _written(self, form: _Form) -> dict[str, Any]:
        unnamed = replace(form.type, name=None)
        return json_schema(unnamed, given=form.given, refer=lambda t: self._address(form.bundle, form.given, t))

    def _address(self, bundle: str, given: bool, t: Type) -> str:
        return f"#/components/schemas/{self._names[_form(bundle, given, t)]}"


def _forms(bundle: str, predictor: Predictor) -> Iterator[_Form]:
    for fields, given in ((predictor.inputs, True), (predictor.outputs, False)):
        yield from (_form(bundle, given, t) for t in _within(fields) if t.name is not None)


def _form(bundle: str, given: bool, t: Type) -> _Form:
    """What a use says of the type is said there."""
    return _Form(bundle, given, replace(t, description=None))


def _within(fields: Iterable[Field]) -> Iterator[Type]:
    found = [field.type for field in fields]
    for t in found:  # grows
        found += [*t.options, *([t.item] if t.item is not None else []), *(field.type for field in t.fields)]
        yield t


def prediction_docs(name: str, predictor: Predictor, types: NamedTypes) -> dict[str, Any]:
    """Keyword arguments of `add_api_route` that document body and responses by the program's own JSON Schema."""
    errors = {
        400: "the body is not JSON",
        413: "the body is too large, or a prompt with it for the model's context window",
        415: "the body is compressed",
        500: "the program failed on this input",
        502: "the model's server failed",
        503: "loading, full or shutting down: try again",
    }
    outputs = types.schema_of(predictor.outputs, bundle=name)
    inputs = types.schema_of(predictor.inputs, bundle=name, given=True)
    return {
        "summary": f"Run {predictor.bundle.manifest.name}",
        "response_model": None,
        "responses": {
            200: {"description": "the program's outputs", "content": _json(outputs)},
            422: {"description": "the input does not fit", "content": _json(_INVALID)},
            **{status: {"description": text, "content": _json(_ERROR)} for status, text in errors.items()},
        },
        "openapi_extra": {"requestBody": {"required": True, "content": _json(inputs)}},
    }


def page_docs(path: str) -> dict[str, Any]:
    """As `prediction_docs`, of one of PAGES."""
    responses = {
        status: {"description": text, "content": _json(schema)} for status, (text, schema) in PAGES[path].items()
    }
    return {"response_model": None, "responses": responses}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": dict(schema)}}
