"""From YAML text to a validated document with positions, and from that to typed settings.

In the order data flows: `yaml` -> `overlay` -> `schema` -> `document` (Spec) -> `build` (Sections); beside them the
type language: `types`, `type_syntax`, `convert`.
"""

from bt_compiler.spec.convert import convert
from bt_compiler.spec.document import Spec
from bt_compiler.spec.sections import Sections
from bt_compiler.spec.type_syntax import TypeSyntaxError, parse_fields, parse_signature_text, parse_type
from bt_compiler.spec.types import Field, Type, assignable, json_schema, json_schema_of_fields, show_type

__all__ = [
    "Field",
    "Sections",
    "Spec",
    "Type",
    "TypeSyntaxError",
    "assignable",
    "convert",
    "json_schema",
    "json_schema_of_fields",
    "parse_fields",
    "parse_signature_text",
    "parse_type",
    "show_type",
]
