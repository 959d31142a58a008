"""The `Tool` protocol and the kinds that a spec may name.

A person's own function comes from an installed package (entry-point group `btc.tools`) or from a file named on the
command line; a spec alone never runs code. Knows nothing of programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from bt_compiler.canonical import digest, digest_file
from bt_compiler.diagnostics import did_you_mean
from bt_compiler.engine.own_code import entry_code_digest, imported_beside
from bt_compiler.engine.tools.builtin import Calculator, TextSplitter
from bt_compiler.engine.tools.process import ProcessTool
from bt_compiler.errors import BackendError, BtcError
from bt_compiler.spec.sections import ToolSection

GROUP = "btc.tools"
"""Entry points that a package registers: name -> `module:function`."""


WORDS = 200
"""Words of a chunk."""


class Tool(Protocol):
    """A function of its inputs. Equal digest, equal answers."""

    @property
    def digest(self) -> str:
        """SHA-256 over the kind, and the file or the package's version."""
        ...

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Typed outputs. Raises ExampleError (BTC540 to BTC542)."""
        ...

    def close(self) -> None:
        """Ends what it runs."""
        ...


def open_tools(sections: Iterable[ToolSection], *, file: Path | None = None) -> dict[str, Tool]:
    """The tools by name; `file` holds the functions of kind `function`. Raises BackendError BTC543, BTC544."""
    opened: dict[str, Tool] = {}
    try:
        for section in sections:
            opened[section.name] = _opened(section, file)
    except BtcError:
        for tool in opened.values():
            tool.close()
        raise
    return opened


def tool_digest(section: ToolSection, file: Path | None = None) -> str:
    """The digest of the tool, without running it. Raises BackendError BTC543 where it is not there."""
    if section.kind == "calculator":
        return Calculator.digest
    if section.kind == "split_text":
        return TextSplitter(int(section.option or WORDS)).digest
    name = str(section.option)
    if section.kind == "entry_point":
        entry = registered(section)
        made = (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")
        return digest(["entry_point", name, entry.value, *made])
    found = _file(section, name, file)
    beside = [[path.relative_to(found.parent).as_posix(), digest_file(path)] for path in imported_beside(found)]
    return digest(["function", name, digest_file(found), *([beside] if beside else [])])


def tool_code(section: ToolSection) -> str | None:
    """Digest of the code behind a tool that an installed package brings, which may change while its version does not;
    None for other kinds. Raises BackendError BTC543 where it is not there.
    """
    return entry_code_digest(registered(section)) if section.kind == "entry_point" else None


def _opened(section: ToolSection, file: Path | None) -> Tool:
    if section.kind == "calculator":
        return Calculator()
    if section.kind == "split_text":
        return TextSplitter(int(section.option or WORDS))
    name, sha256 = str(section.option), tool_digest(section, file)
    if section.kind == "entry_point":
        return ProcessTool(section, ["entry", GROUP, name], sha256)
    return ProcessTool(section, ["file", str(_file(section, name, file)), name], sha256)


def _file(section: ToolSection, name: str, file: Path | None) -> Path:
    if file is None:
        raise BackendError.of(
            "BTC543",
            f"tool `{section.name}` is a function of your own, and no file was named",
            span=section.span,
            help=f"give the Python file that defines `{name}`: `--tools FILE`, in Python the argument `tools`",
        )
    try:
        if file.is_file():
            return file.absolute()
        why = f"there is no file `{file}`"
    except OSError as error:
        why = f"`{file}` cannot be read: {str(error.strerror).lower()}"
    raise BackendError.of("BTC543", why, help="`--tools` names a Python file")


def registered(section: ToolSection) -> EntryPoint:
    """The entry point of a tool of kind `entry_point`; its code is not loaded. Raises BackendError BTC543."""
    name, found = str(section.option), {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise BackendError.of(
            "BTC543",
            f"no installed package registers the tool `{name}`",
            span=section.span,
            help=did_you_mean(name, found, what="registered") if found else f"none has the group `{GROUP}`",
        )
    return found[name]
