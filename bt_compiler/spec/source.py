"""Files and arguments as texts that spans can point into. Knows nothing of YAML."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from bt_compiler.diagnostics import Source, Span
from bt_compiler.errors import SpecError

MAX_BYTES = 1 << 20
"""Largest spec file. A spec is written by hand; data belongs into data files."""

_NOT_YAML = re.compile("[^\\t\\n\\r\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def shown_name(path: Path) -> str:
    """The path as messages show it: relative to the working directory where it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def read_source(path: Path, *, parent: Source | None = None, named_at: Span | None = None) -> Source:
    """The text of a spec file; `named_at` is where another file names it. Raises SpecError (BTC001 to BTC007)."""
    name = shown_name(path)
    return Source(name=name, text=_decode(_read_bytes(path, name, named_at), name), parent=parent)


def _read_bytes(path: Path, name: str, named_at: Span | None) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            help = f"name a file in it, such as `{_first_spec(path) or path / 'spec.yaml'}`"
            raise SpecError.of("BTC002", f"`{name}` is a folder, not a spec file", help=help, span=named_at)
        if not stat.S_ISREG(mode):
            raise SpecError.of("BTC002", f"`{name}` is not a regular file", span=named_at)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        help = "paths in a spec are relative to the file that has them" if named_at else "`btc init NAME` writes a spec"
        raise SpecError.of("BTC001", f"there is no file `{name}`", help=help, span=named_at) from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SpecError.of("BTC003", f"`{name}` cannot be read: {reason.lower()}", span=named_at) from error
    if len(raw) > MAX_BYTES:
        raise SpecError.of(
            "BTC004",
            f"`{name}` is larger than 1 MiB",
            help="a spec names data files by their paths; it does not hold the data",
            span=named_at,
        )
    return raw


def _first_spec(folder: Path) -> Path | None:
    found = sorted(entry for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    return found[0] if found else None


def _decode(raw: bytes, name: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = raw[: error.start].decode("utf-8", "replace")
        line = start.count("\n") + 1
        kind = (
            "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "a binary file" if b"\0" in raw else "another code"
        )
        raise SpecError.of(
            "BTC005",
            f"`{name}` is not UTF-8 text: byte {error.start + 1} is 0x{raw[error.start]:02x}",
            help="save the file as UTF-8",
            notes=[f"it looks like {kind}; the byte stands on line {line}"],
        ) from error
    if not text.strip():
        raise SpecError.of("BTC007", f"`{name}` is empty", help="`btc init NAME` writes a spec to start from")
    return text


def refuse_control_characters(source: Source) -> None:
    """Raises SpecError (BTC006) at the first character that YAML does not take."""
    found = _NOT_YAML.search(source.text)
    if found is not None:
        message = f"the control character U+{ord(found.group()):04X} has no place in a spec"
        help = "is this the right file? in quotes such a character is written as `\\x00`"
        raise SpecError.of("BTC006", message, span=span_at(source, found.start()), help=help)


def span_at(source: Source, index: int, length: int = 1) -> Span:
    """The span of `length` characters of one line from character `index` of the text on."""
    before = source.text[:index].splitlines(keepends=True)
    ended = not before or before[-1].splitlines()[0] != before[-1]
    line = len(before) + 1 if ended else len(before)
    column = 1 if ended else len(before[-1]) + 1
    return Span(source=source, line=line, column=column, end_line=line, end_column=column + length)
