"""Prompt formats inside a bundle: which file each is kept in, and programs that name them there.

A compile's program names a format (`fields`) or the user's own file by absolute path; a bundle's program names
`formats/<name>.jinja`, so that it says the same on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bt_compiler.canonical import digest
from bt_compiler.graph.hashing import hashed
from bt_compiler.graph.program import Program

_ODD = re.compile(r"[^A-Za-z0-9_.-]+")


def format_files(formats: Mapping[str, str]) -> dict[str, str]:
    """`Module.format` -> path in the bundle, from `Module.format` -> text. Two files of one name are told apart by
    their content.
    """
    paths: dict[str, str] = {}
    for name, text in sorted(formats.items(), key=lambda item: (digest(item[1]), item[0])):
        stem = _ODD.sub("-", Path(name).stem if name.endswith(".jinja") else name).lstrip(".") or "format"
        path = f"formats/{stem}.jinja"
        if any(other == path and formats[one] != text for one, other in paths.items()):
            path = f"formats/{stem}-{digest(text)[:8]}.jinja"
        paths[name] = path
    return paths


def portable(program: Program, files: Mapping[str, str]) -> Program:
    """The program with every module's format as the path in the bundle, and node hashes that say so too."""
    modules = tuple(replace(module, format=files[module.format]) for module in program.modules)
    return hashed(replace(program, modules=modules))


def resolved(program: Program, folder: Path) -> Program:
    """The inverse for a reader: formats as absolute paths into the bundle. Raises ValueError for any other path."""
    for module in program.modules:
        if not re.fullmatch(r"formats/[A-Za-z0-9_.-]+\.jinja", module.format):
            raise ValueError(f"module `{module.name}` has its format at `{module.format}`")
    return replace(
        program, modules=tuple(replace(module, format=str(folder / module.format)) for module in program.modules)
    )
