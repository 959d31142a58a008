"""What the server says of itself: OpenAPI from the program's JSON Schema, error bodies, the page at `/docs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_compiler.engine.templates import template_folder
from bt_compiler.runtime.inputs import InputError
from bt_compiler.runtime.predictor import Predictor
from bt_compiler.spec import Type, show_type
from bt_compiler.spec.optimizing import REMOTE_ENGINES

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "node": {"type": ["string", "null"], "description": "step of the program that failed"},
            },
            "required": ["code", "message"],
        }
    },
    "required": ["error"],
}
_INVALID = {
    "type": "object",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
                "required": ["loc", "msg", "type"],
            },
        }
    },
    "required": ["detail"],
}


def prediction_docs(predictor: Predictor) -> dict[str, Any]:
    """Keyword arguments of `add_api_route` that document body and responses by the program's own JSON Schema."""
    errors = {
        400: "the body is not JSON",
        413: "the body is too large, or a prompt with it for the model's context window",
        500: "the program failed on this input",
        502: "the model's server failed",
        503: "loading, full or shutting down: try again",
    }
    return {
        "summary": f"Run {predictor.bundle.manifest.name}",
        "response_model": None,
        "responses": {
            200: {"description": "the program's outputs", "content": _json(predictor.output_schema)},
            422: {"description": "the input does not fit", "content": _json(_INVALID)},
            **{status: {"description": text, "content": _json(_ERROR)} for status, text in errors.items()},
        },
        "openapi_extra": {"requestBody": {"required": True, "content": _json(predictor.check.schema)}},
    }


def problem_detail(error: InputError) -> list[dict[str, Any]]:
    """The body of a 422: a place and a message for everything that is wrong."""
    return [
        {"loc": ["body", *problem.path], "msg": problem.message, "type": problem.kind, "code": "BTC562"}
        for problem in error.problems
    ]


def failure_status(predictor: Predictor, code: str) -> int:
    """Status of an example that failed: 413 where a prompt was too long, 502 where a remote model is involved or a
    search server refused, else 500.
    """
    if code == "BTC523":
        return 413
    remote = any(model.engine in REMOTE_ENGINES for model in predictor.bundle.manifest.models.values())
    return 502 if remote or code == "BTC545" else 500


def describe(name: str, predictor: Predictor) -> dict[str, Any]:
    """What `GET /` says of one bundle."""
    manifest = predictor.bundle.manifest
    return {
        "name": name,
        "digest": manifest.digest,
        "predict": f"/v1/{name}/predict",
        "inputs": {field.name: show_type(field.type) for field in predictor.inputs},
        "outputs": {field.name: show_type(field.type) for field in predictor.outputs},
        "models": {key: model.id for key, model in manifest.models.items()},
        "schema": {"inputs": predictor.check.schema, "outputs": predictor.output_schema},
    }


def index_page(predictors: Mapping[str, Predictor]) -> str:
    """The page at `/docs`: every bundle with its fields and a form to try it; needs nothing from elsewhere."""
    import json

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder() / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bundles = [
        {
            **describe(name, predictor),
            "sample": json.dumps(
                {one.name: sample(one.type) for one in predictor.inputs}, indent=2, ensure_ascii=False
            ),
        }
        for name, predictor in predictors.items()
    ]
    return environment.get_template("docs.html.jinja").render(bundles=bundles)


def sample(type: Type) -> Any:
    """A value of the type to start a form with."""
    match type.kind:
        case "enum":
            return type.values[0] if type.values else ""
        case "list":
            return []
        case "object":
            return {field.name: sample(field.type) for field in type.fields}
        case "union":
            return sample(type.options[0])
        case "int" | "float":
            return type.minimum or 0
        case "bool":
            return False
        case "null":
            return None
    return ""


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": dict(schema)}}
