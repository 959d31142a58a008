"""The lines of a file that may be compressed (`.gz`, `.zst`), one at a time, and the cells of those of a CSV.

Knows nothing of what they say.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bt_compiler.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

PACKED = (".gz", ".zst")
_BLOCK = 1 << 17
_LONGEST_CELL = 2**31 - 1
"""Characters: what a C long holds everywhere."""


def format_suffix(path: Path) -> str:
    """The ending that says the format, in lower case: `.jsonl` of `train.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def data_lines(path: Path) -> Generator[bytes, None, None]:
    """Lines with their ends, cut at line feeds alone.

    Raises OSError, also for a damaged or cut archive, and DataError BTC318 where the package for it is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _lines(_zstd_blocks(path))
    elif suffix == ".gz":
        try:
            with gzip.open(path, "rb") as file:
                yield from file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"the gzip archive is damaged ({error})") from error
    else:
        with path.open("rb") as file:
            yield from file


def csv_cells(lines: Iterable[str]) -> CsvReader:
    """The rows of a CSV, cells of any length. Iterating raises csv.Error where a row is none."""
    csv.field_size_limit(_LONGEST_CELL)  # the process's, for the module offers no other; its default is 128 KiB
    return csv.reader(lines, strict=True)


def missing_package(package: str, what: str) -> DataError:
    """The error for a format whose package is not installed."""
    return DataError.of(
        "BTC318",
        f"{what} needs the package `{package}`, which is not installed",
        help="pip install 'bt-compiler[data]'",
    )


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest


def _zstd_blocks(path: Path) -> Iterator[bytes]:
    """Frame by frame, so that a file that ends within one is noticed; the library's reader would end quietly."""
    try:
        import zstandard
    except ImportError as error:
        raise missing_package("zstandard", f"`{path.name}`") from error
    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                while block:
                    begun = True
                    yield frame.decompress(block)
                    if not frame.eof:
                        break
                    block, begun = frame.unused_data, False
                    frame = zstandard.ZstdDecompressor().decompressobj()
    except zstandard.ZstdError as error:
        raise OSError(f"the zstd archive is damaged ({error})") from error
    if begun:
        raise OSError("the zstd archive is damaged (it ends within a frame)")
