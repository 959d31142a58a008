"""A resolved document as YAML that loads again to the same values. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bt_compiler.spec.scalars import ScalarError, plain_scalar


def yaml_text(document: Mapping[str, Any]) -> str:
    """YAML of plain values, in their order, without aliases.

    PyYAML writes by YAML 1.1, where `1e-4` and `0o17` are texts: what the core schema reads as something else is put in
    quotes.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _is_text(text) else '"')

    Dumper.add_representer(str, represent_text)
    dumped: str = yaml.dump(dict(document), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return dumped


def _is_text(text: str) -> bool:
    try:
        return plain_scalar(text) == text and text not in ("<<", "=")
    except ScalarError:
        return False
