"""Digests of people's own Python code: which files a function is made of, as far as that is known without running it.

An import whose name is put together while running is not seen. Knows files and entry points; nothing of what the
functions are for.
"""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from bt_compiler.canonical import digest, digest_file


def entry_code_digest(entry: EntryPoint) -> str:
    """Digest of the package's Python files, or of the one file that the module is and of those that it imports beside
    it. Installed packages beside it are not looked into, for they have versions.
    """
    found = find_spec(entry.module.partition(".")[0])
    if found is None:
        return ""  # whoever loads it says so
    if found.submodule_search_locations is not None:
        folders = [Path(place) for place in found.submodule_search_locations]
        return digest([_digests(_python_files(folder), folder) for folder in folders])
    file = Path(found.origin or "")
    if not file.is_file():
        return ""
    alone = any(file.parent.glob("*.dist-info"))
    return digest(_digests([file, *([] if alone else imported_beside(file))], file.parent))


def _digests(files: list[Path], folder: Path) -> list[list[str]]:
    return [[path.relative_to(folder).as_posix(), digest_file(path)] for path in files]


def _python_files(folder: Path) -> list[Path]:
    """Of the folder and those inside it; none of a folder that is not there, nor what editors keep beside a file."""
    return [path for path in sorted(folder.rglob("*.py")) if path.is_file() and not path.name.startswith(".")]


def imported_beside(file: Path) -> list[Path]:
    """The Python files in `file`'s folder that it imports, and that those import; of a package all. Nothing is run."""
    found: dict[Path, None] = {}
    left = [file]
    while left:
        for name in _imported(left.pop()):
            module, package = file.parent / f"{name}.py", file.parent / name
            parts = [module] if module.is_file() else _python_files(package)
            new = [path for path in parts if path != file and path not in found]
            found |= dict.fromkeys(new)
            left += new
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """First parts of the names that a file imports; none of a file that is no Python, which says so when it is run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}
