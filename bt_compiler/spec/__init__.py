"""From YAML text to a validated document with positions, and from that to typed settings.

In the order data flows: `yaml` -> `overlay` -> `schema` -> `document` (Spec) -> `build` (Sections); beside them the
type language: `types`, `type_syntax`, `convert`.
"""

from bt_compiler.spec.build import build_sections
from bt_compiler.spec.convert import convert, convert_text
from bt_compiler.spec.declared import named_types
from bt_compiler.spec.document import Spec, file_in
from bt_compiler.spec.dump import yaml_text
from bt_compiler.spec.load import load_spec
from bt_compiler.spec.schema import schema_text
from bt_compiler.spec.sections import Sections
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_fields, parse_signature_text, parse_type
from bt_compiler.spec.types import Field, Type, assignable, json_schema, json_schema_of_fields, show_type, takes_null

__all__ = [
    "Field",
    "Sections",
    "Spec",
    "Type",
    "TypeSyntaxError",
    "assignable",
    "build_sections",
    "convert",
    "convert_text",
    "file_in",
    "json_schema",
    "json_schema_of_fields",
    "load_spec",
    "named_types",
    "parse_fields",
    "parse_signature_text",
    "parse_type",
    "schema_text",
    "show_type",
    "takes_null",
    "yaml_text",
]
