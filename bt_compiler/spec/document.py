"""The spec as a document: merged, validated, every key and value with its place. It does not know what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bt_compiler.diagnostics import Source, Span
from bt_compiler.spec.tree import Node, Place, find

_HUB_SET = re.compile(r"hf://(?P<id>[^\[\]:]+)(?P<rest>.*)", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+]+:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A validated spec."""

    path: Path
    """Absolute path of the spec file."""
    tree: Node = field(repr=False)
    """The merged document with positions."""
    document: Mapping[str, Any] = field(repr=False)
    """The same as plain values; defaults are not filled in."""
    sources: tuple[Source, ...] = field(repr=False)
    """The spec file first, then the files it extends, then the `--set` arguments."""
    folders: Mapping[str, Path] = field(repr=False)
    """Name of a source -> folder that paths written in it are relative to."""

    def span(self, path: Place, *, key: bool = False) -> Span:
        """Where the value (or with `key` its key) at `path` was written; the nearest enclosing value if nowhere."""
        return find(self.tree, path, key=key)

    def get(self, path: Place, default: Any = None) -> Any:
        """The plain value at `path`, or `default` where the document has none."""
        value: Any = self.document
        for step in path:
            inside = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
            if step not in inside:
                return default
            value = value[step]
        return value

    def folder(self, path: Place) -> Path:
        """The folder that a file named at `path` is relative to: that of the file that wrote the value."""
        return self.folders[self.span(path).source.name]

    def file(self, path: Place) -> str:
        """What is named at `path`, from `folder(path)` as `file_in` has it."""
        return file_in(self.folder(path), str(self.get(path)))

    def resolved(self) -> dict[str, Any]:
        """The document with every default written out and paths absolute; loading it gives the same again.

        Raises SpecError where settings are wrong (`build_sections`).
        """
        from bt_compiler.spec.resolve import resolve  # it is made from the sections, which are made from this

        return resolve(self)

    def identity(self) -> dict[str, Any]:
        """`resolved()` without what differs between machines: paths of files, endpoints and names of keys."""
        from bt_compiler.spec.resolve import identity  # as above

        return identity(self)


def file_in(folder: Path, written: str) -> str:
    """The file `written` as an absolute path; names with a scheme (`sklearn:iris`) stay as they are, but for the folder
    in `hf://./folder:train`. A link to a file keeps its own name, whose suffix says the format: caches of data sets
    link to files that are named by their hash.
    """
    hub = _HUB_SET.fullmatch(written)
    if hub is not None:
        local = (folder / _at_home(hub["id"])).resolve()
        return f"hf://{local}{hub['rest']}" if names_path(hub["id"], local) else written
    if _SCHEME.match(written):
        return written
    path = folder / _at_home(written)
    return str(path.parent.resolve() / path.name if _is_file(path) else path.resolve())


def names_path(written: str, path: Path) -> bool:
    """Whether `written`, which may be an id of the hub, means the file or folder at `path`: it is written as a path, or
    something lies there.
    """
    try:
        return written.startswith(("/", "./", "../", "~/")) or path.exists()
    except OSError:  # a name too long for a file system is no file's
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # as above
        return False


def _at_home(written: str) -> Path:
    """The path with `~` as the home folder; as written where there is no such user."""
    try:
        return Path(written).expanduser()
    except RuntimeError:
        return Path(written)
