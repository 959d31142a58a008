"""The document that `/openapi.json` gives: what is answered fits it, and each named type stands in it once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import SPEC
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from bt_compiler.engine.backends.scripted import ScriptedBackend
from bt_compiler.runtime import Predictor, load
from bt_compiler.runtime.serve import by_name, create_app

TYPES = """\
types:
  Address: {fields: {street: str, zip: str | null}}
  Customer: {fields: {name: str, where: Address, title: str}}
  Level: {enum: [low, high]}
  Größe: {fields: {cm: float}}
modules:
"""
INPUTS = """{buyer: {type: Customer, description: who pays}, people: [Customer], maybe: Customer | null, level: Level,
size: Größe, seen: [Passage]}"""
OUTPUTS = "{kind: {enum: [odd, even]}, twice: int, seller: Customer, levels: [Level]}"


def made(adder: Callable[..., Path], folder: Path, *, name: str = "adder", zip: str = "str | null") -> Predictor:
    written = SPEC.replace("name: adder", f"name: {name}").replace("modules:\n", TYPES.replace("str | null", zip))
    written = written.replace("{number: int, note: str | null}", INPUTS)
    written = written.replace("{kind: {enum: [odd, even]}, twice: int}", OUTPUTS)
    return load(adder(folder, spec=written), opener=lambda section: ScriptedBackend())


def schemas(document: Any, path: str) -> tuple[Any, Any]:
    """Of body and result."""
    operation = document["paths"][path]["post"]
    told = operation["requestBody"], operation["responses"]["200"]
    body, result = (one["content"]["application/json"]["schema"] for one in told)
    return body, result


def written_out(schema: Any, document: Any) -> Any:
    """With every reference replaced by what it names."""
    if isinstance(schema, dict) and "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**written_out(document["components"]["schemas"][name], document), **beside}
    if isinstance(schema, dict):
        return {key: written_out(value, document) for key, value in schema.items()}
    return [written_out(value, document) for value in schema] if isinstance(schema, list) else schema


def without_titles(schema: Any) -> Any:
    if isinstance(schema, dict):
        named = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
        return {key: without_titles(value) for key, value in named.items()}
    return [without_titles(value) for value in schema] if isinstance(schema, list) else schema


def test_a_named_type_stands_once_in_the_document(adder: Callable[..., Path], tmp_path: Path) -> None:
    predictor = made(adder, tmp_path)
    document = create_app({"adder": predictor}).openapi()
    given = {"CustomerInput", "AddressInput", "PassageInput"}
    assert set(document["components"]["schemas"]) == {*given, "Customer", "Address", "Level", "Gr__e"}
    body, result = schemas(document, "/v1/predict")
    customer = {"$ref": "#/components/schemas/CustomerInput"}
    assert body["properties"]["buyer"] == {**customer, "description": "who pays"}
    assert body["properties"]["people"] == {"type": "array", "items": customer}
    assert body["properties"]["maybe"] == {"anyOf": [customer, {"type": "null"}]}
    assert result["properties"]["seller"] == {"$ref": "#/components/schemas/Customer"}
    assert written_out(body, document) == without_titles(predictor.check.schema)
    assert written_out(result, document) == without_titles(predictor.output_schema)


def test_types_of_one_name_that_differ_are_called_by_their_bundles(adder: Callable[..., Path], tmp_path: Path) -> None:
    predictors = by_name([made(adder, tmp_path / "a"), made(adder, tmp_path / "b", name="other", zip="str")])
    document = create_app(predictors).openapi()
    assert set(document["components"]["schemas"]) == {
        *("CustomerInput", "AddressInput", "PassageInput", "Level", "Gr__e"),
        *("adder_Customer", "adder_Address", "other_Customer", "other_Address"),
    }
    for name, predictor in predictors.items():
        body, result = schemas(document, f"/v1/{name}/predict")
        assert written_out(body, document) == without_titles(predictor.check.schema)
        assert written_out(result, document) == without_titles(predictor.output_schema)


def test_the_version_is_that_of_the_bundles(predictor: Predictor) -> None:
    info = create_app({"one": predictor, "two": predictor}).openapi()["info"]
    assert info["version"] == ", ".join([predictor.bundle.manifest.digest[:12]] * 2)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/", None, 200),
        ("/healthz", None, 200),
        ("/readyz", None, 503),
        ("/v1/predict", b'{"more": 1}', 422),
        ("/v1/predict", b"{", 400),
        ("/v1/predict", b'{"number": 1}', 503),
    ],
)
def test_what_is_answered_fits_the_document(bundle: Path, path: str, body: bytes | None, status: int) -> None:
    app = create_app(by_name([load(bundle, opener=lambda section: pytest.fail("a model was opened"))]))
    client = TestClient(app)  # without its lifespan: no model is ever loaded
    answer: httpx.Response = client.get(path) if body is None else client.post(path, content=body)
    assert answer.status_code == status
    told = app.openapi()["paths"][path]["get" if body is None else "post"]["responses"][str(status)]
    schema = told["content"]["application/json"]["schema"]
    Draft202012Validator(strict(schema)).validate(answer.json())


def strict(schema: Any) -> Any:
    """The schema, told to take nothing that it does not name."""
    if isinstance(schema, list):
        return [strict(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    named = schema.get("type") == "object" and "properties" in schema
    return {**inner, "additionalProperties": False} if named else inner
