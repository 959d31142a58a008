"""Passages on disk: one JSON line each and the table of where lines start, read through a memory map.

A passage is found by its number in constant time and memory does not grow with the corpus.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from bt_compiler.engine.retrieval.corpus import Text

TEXTS = "passages.jsonl"
STARTS = "passages.starts.npy"


def write_passages(folder: Path, texts: Iterable[Text]) -> Iterator[Text]:
    """Writes every passage as it goes through; the table is written when the last one has."""
    import numpy as np

    starts, written = array("q", [0]), json.JSONEncoder(ensure_ascii=False).encode
    with (folder / TEXTS).open("wb") as file:
        for text in texts:
            line = f"{written([text.id, text.title, text.text])}\n"
            starts.append(starts[-1] + file.write(line.encode("utf-8", "surrogatepass")))
            yield text
    np.save(folder / STARTS, np.frombuffer(starts, dtype=np.int64), allow_pickle=False)


class Passages:
    """The passages of an index, by number."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self._starts = np.load(folder / STARTS, mmap_mode="r", allow_pickle=False)
        with (folder / TEXTS).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> Text:
        return Text(*json.loads(self._line(number)))

    def ids(self) -> Iterator[str]:
        """Those of all passages, in order; the rest of their lines is not read."""
        first_of = json.JSONDecoder().raw_decode
        for number in range(len(self)):
            yield first_of(self._line(number), 1)[0]

    def _line(self, number: int) -> str:
        line = self._map[int(self._starts[number]) : int(self._starts[number + 1])]
        return line.decode("utf-8", "surrogatepass")
