"""How other languages write types, and what to write here in their place. Knows words, not types."""

from __future__ import annotations

import re

FOREIGN = {
    "string": "str",
    "text": "str",
    "String": "str",
    "Text": "str",
    "integer": "int",
    "Integer": "int",
    "number": "float",
    "Number": "float",
    "double": "float",
    "boolean": "bool",
    "Boolean": "bool",
    "None": "null",
    "none": "null",
    "list": "[str]",
    "List": "[str]",
    "array": "[str]",
    "tuple": "[str]",
    "set": "[str]",
}
"""Another language's word for a type -> ours."""
_SHOWN = 120
"""Characters of a written type that are looked at."""


def foreign_help(text: str, *, exact: bool = False) -> str | None:
    """What to write in place of a type that is another language's: `list[str]`, `Optional[str]`, `string`.

    With `exact` None where nothing fits, else the list of what can be written.
    """
    written = text.strip()[:_SHOWN]
    if written in FOREIGN:
        return f"write `{FOREIGN[written]}`"
    if match := re.fullmatch(r"(?:typing\.)?(?:list|List|Sequence|array|Array|tuple|set)\s*[\[<(](.+)[\])>]", written):
        return f"write `[{_native(match[1])}]`"
    if match := re.fullmatch(r"(\S+)\[\]", written):
        return f"write `[{_native(match[1])}]`"
    if match := re.fullmatch(r"(?:typing\.)?(?:Optional)\s*\[(.+)\]|(\w+)\?", written):
        return f"write `{_native(match[1] or match[2])} | null`"
    if match := re.fullmatch(r"(.+?)\s*\|\s*None", written):
        return f"write `{_native(match[1])} | null`"
    if match := re.fullmatch(r"(?:typing\.)?Literal\s*\[(.+)\]", written):
        return f"write `{{enum: [{match[1]}]}}`"
    if re.match(r"(?:typing\.)?(?:dict|Dict|object|map)\b", written):
        return "declare its fields under `types` and write the name of that type"
    return (
        None
        if exact
        else "write `str`, `int`, `float`, `bool`, `[str]`, `str | null`, `{enum: [a, b]}` or a type's name"
    )


def _native(text: str) -> str:
    inner = foreign_help(text, exact=True)
    return inner.removeprefix("write `").removesuffix("`") if inner and inner.startswith("write `") else text.strip()
