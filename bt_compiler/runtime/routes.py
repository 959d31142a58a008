"""What the server says of itself: its bundles, error bodies, the page at `/docs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_compiler.engine.templates import template_folder
from bt_compiler.runtime.inputs import InputError
from bt_compiler.runtime.predictor import Predictor
from bt_compiler.spec import Type, show_type
from bt_compiler.spec.optimizing import REMOTE_ENGINES


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
