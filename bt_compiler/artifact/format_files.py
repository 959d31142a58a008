"""Prompt formats inside a bundle: which file each is kept in, and programs that name them there.

A compile's program names a format (`fields`) or the user's own file by absolute path; a bundle's program names
`formats/<name>.jinja`, so that it says the same on every machine. So do the manifest's facts of judges.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bt_compiler.canonical import digest
from bt_compiler.graph.hashing import hashed
from bt_compiler.graph.judges import Judges
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
    modules = [replace(one, format=_within(folder, one.name, one.format)) for one in program.modules]
    return replace(program, modules=tuple(modules))


def judge_formats(files: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Judge -> absolute path of its format in the bundle. Raises ValueError for any other path."""
    return {name: _within(folder, name, path) for name, path in files.items()}


def with_formats(judges: Judges, formats: Mapping[str, str]) -> Judges:
    """The judges, those named in `formats` with that format."""
    return {
        key: replace(judge, module=replace(judge.module, format=formats.get(judge.module.name, judge.module.format)))
        for key, judge in judges.items()
    }


def _within(folder: Path, module: str, path: str) -> str:
    if not re.fullmatch(r"formats/[A-Za-z0-9_.-]+\.jinja", path):
        raise ValueError(f"module `{module}` has its format at `{path}`")
    return str(folder / path)
