"""The shipped schema is valid, described, and says the same as the settings it stands for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bt_compiler.spec import schema_text
from bt_compiler.spec.schema import is_plain_url
from bt_compiler.spec.sections import (
    AcceptSection,
    CorpusSection,
    Generation,
    OptimizeSection,
    PreferenceSection,
    PromptsSection,
    WeightsSection,
)

SCHEMA = json.loads(schema_text())
OPTIMIZE = SCHEMA["$defs"]["optimize"]["properties"]
FOUND_OUT = {"span", "spans", "prefix"}
"""Fields of sections that nobody writes."""


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize(
    ("section", "properties"),
    [
        (PromptsSection, OPTIMIZE["prompts"]["properties"]),
        (WeightsSection, OPTIMIZE["weights"]["properties"]),
        (PreferenceSection, OPTIMIZE["weights"]["properties"]["preference"]["properties"]),
        (AcceptSection, OPTIMIZE["accept"]["properties"]),
        (OptimizeSection, OPTIMIZE),
        (Generation, SCHEMA["$defs"]["generation"]["properties"]),
        (CorpusSection, SCHEMA["$defs"]["retriever"]["properties"]["corpus"]["then"]["properties"]),
    ],
)
def test_keys_are_the_fields_of_the_sections(section: Any, properties: dict[str, Any]) -> None:
    assert set(properties) == {field.name for field in dataclasses.fields(section)} - FOUND_OUT


@pytest.mark.parametrize(("section", "key"), [(PromptsSection, "prompts"), (WeightsSection, "weights")])
def test_descriptions_say_the_defaults(section: Any, key: str) -> None:
    defaults = section()
    for name, described in OPTIMIZE[key]["properties"].items():
        value = getattr(defaults, name)
        if isinstance(value, int | float):
            said = described["description"].rpartition("Default: ")[2].rstrip(".")
            assert said == str(value).lower() if isinstance(value, bool) else float(said) == value, name
        if isinstance(value, str):
            assert f"Default: {value}." in described["description"]


def keys(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        closed = schema.get("additionalProperties") is not None
        for name, child in schema.get("properties", {}).items() if closed else ():
            yield f"{path}.{name}", child
        for name, child in schema.items():
            yield from keys(child, f"{path}.{name}")
    elif isinstance(schema, list):
        for item in schema:
            yield from keys(item, path)


def test_an_editor_has_something_to_say_of_each_key() -> None:
    for path, child in keys(SCHEMA):
        target = child
        while "description" not in target and "$ref" in target:
            target = SCHEMA["$defs"][target["$ref"].rpartition("/")[2]]
        if path.rpartition(".")[0].endswith(".split.properties") or path.split(".")[-2:-1] == ["split"]:
            continue  # `train`, `dev` and `test` are described with the section
        assert "description" in target, path


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "specs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_example_specs_are_right_in_an_editor(path: Path) -> None:
    """Which reads YAML with a parser of its own, one file at a time, and knows nothing of btc."""
    document = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_an_editor_sees_what_is_wrong_in_a_file_that_extends_another() -> None:
    extending = SCHEMA["$defs"]["extending"]
    assert extending["propertyNames"]["enum"] == list(SCHEMA["$defs"]["spec"]["properties"])
    validator = jsonschema.Draft202012Validator(SCHEMA)
    assert validator.is_valid({"extends": "base.yaml", "modules": {"ask": None}, "data": {"limit": 3}})
    assert not validator.is_valid({"extends": "base.yaml", "modul": {}})
    assert not validator.is_valid({"extends": 3})
    assert not validator.is_valid({"version": 1, "modules": {"ask": {"kind": "predict"}}})


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://a", True),
        ("https://a:80/v1", True),
        ("http://[::1]:9/", True),
        ("http://a\n", False),
        ("http://u@a", False),
        ("http://a/v1?key=1", False),
        ("x http://a", False),
        ("ftp://a", False),
    ],
)
def test_urls_of_engines_and_of_search_servers_are_one_pattern(url: str, plain: bool) -> None:
    assert is_plain_url(url) is plain
    schema = {"$ref": "#/$defs/model/then/properties/endpoints", "$defs": SCHEMA["$defs"]}
    assert jsonschema.Draft202012Validator(schema).is_valid([url]) is plain
