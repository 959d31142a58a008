"""Folders of indexes: named by the digest of everything they depend on, built once, under a lock, in a side folder that
is renamed into place. Knows corpora and files, nothing of what an index holds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from bt_compiler.canonical import canonical_json, digest, digest_file
from bt_compiler.engine.cache import file_lock
from bt_compiler.engine.retrieval.corpus import Text, read_corpus
from bt_compiler.engine.retrieval.corpus_rows import in_hub, unreadable
from bt_compiler.engine.retrieval.opening import Opening
from bt_compiler.errors import BackendError, BundleError
from bt_compiler.spec.sections import CorpusSection

SCHEMA = 2
"""Version of the index folder."""
_MARKER = "index.json"
"""Written last: schema version, digest of the corpus, and the size of every other file."""
_CHUNK = 1000
"""Passages taken together, and the step of progress."""
_BLOCK = 1024
"""Scores looked at together."""


def corpus_digest(corpus: CorpusSection) -> str:
    """SHA-256 of the file; of a data set of the hub that of its passages. Raises DataError BTC373."""
    if in_hub(corpus):
        content = sha256()
        for text in read_corpus(corpus):
            content.update(canonical_json(list(text)).encode("utf-8", "surrogatepass") + b"\n")
        return content.hexdigest()
    try:
        return digest_file(Path(corpus.path))
    except OSError as error:
        raise unreadable(corpus, error) from error


def corpus_settings(corpus: CorpusSection) -> dict[str, Any]:
    """What decides, beside the file, which passages an index holds."""
    where = {"where": [asdict(condition) for condition in corpus.where]} if corpus.where else {}
    prefix = {"prefix": corpus.prefix} if corpus.prefix else {}
    return {"schema": SCHEMA, "id": corpus.id, "title": corpus.title, "text": corpus.text, **where, **prefix}


class Index(NamedTuple):
    """An index on the disk."""

    folder: Path
    digest: str
    """Of the corpus and of all settings."""
    settings: Mapping[str, Any]


def find_index(
    opening: Opening,
    corpus: CorpusSection,
    choices: Sequence[Mapping[str, Any]],
    build: Callable[[Path, Mapping[str, Any]], None],
    *,
    choose: Callable[[], Mapping[str, Any]] | None = None,
) -> Index:
    """The index of a corpus: the one that a bundle brought, else the one in the cache, built first where there is none.

    Its settings are those of `choices` that the expected digest is of. Where none is expected `choose` says which, and
    without it they are the first.

    Raises DataError for the corpus, BackendError BTC362 where the cache cannot be written, BundleError: BTC563 where it
    is not the one expected, which is seen before anything is built, BTC568 where a carried one cannot be used.
    """
    content = corpus_digest(corpus) if opening.carried is None else _carried_content(opening, opening.carried)
    known = {digest({"corpus": content, **settings}): settings for settings in choices}
    identity = opening.expected if opening.expected in known else next(iter(known))
    opening.refuse_another(identity)
    if opening.carried is not None:
        return Index(opening.carried, identity, known[identity])
    settings = choose() if choose is not None and opening.expected is None else known[identity]
    identity = digest({"corpus": content, **settings})
    folder = opening.cache_root / "indexes" / identity
    _prepare(folder, corpus, content, lambda building: build(building, settings))
    return Index(folder, identity, settings)


def _carried_content(opening: Opening, folder: Path) -> str:
    """Digest of the corpus that a carried index was made of."""
    marker = _marker(folder)
    if marker is None:
        raise BundleError.of(
            "BTC568",
            f"the index of retriever `{opening.section.name}` in `{folder}` is not laid out as this btc reads it",
            help="compile again with `--with-index`; the journal has all of it but the index",
        )
    return str(marker["corpus"])


def _prepare(folder: Path, corpus: CorpusSection, content: str, build: Callable[[Path], None]) -> None:
    """Lets `build` fill a side folder and renames it to `folder`; a second process waits and finds it ready.

    Raises what `build` raises, and BackendError BTC362 where the folder cannot be written.
    """
    if _marker(folder) is not None:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_suffix(".lock")):
            if _marker(folder) is not None:
                return
            building = folder.with_suffix(".building")
            for old in (building, folder):  # left by a process that was killed, or damaged since
                if old.exists():
                    shutil.rmtree(old)
            building.mkdir()
            try:
                build(building)
                _finish(building, content)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
            building.rename(folder)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BackendError.of(
            "BTC362",
            f"the index of corpus `{corpus.path}` cannot be written under `{folder.parent}`: {reason}",
            help="name a folder that can be written, on a disk with room, in `BTC_CACHE`",
        ) from error


def _marker(folder: Path) -> Mapping[str, Any] | None:
    """The marker of a whole index; None where it is not there or a file has not the size it names."""
    try:
        marker: dict[str, Any] = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        sizes = marker["files"].items() if marker["schema"] == SCHEMA and "corpus" in marker else None
        whole = sizes is not None and all((folder / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return marker if whole else None


def _finish(folder: Path, content: str) -> None:
    """Everything on the disk, then the marker, so that a folder with a marker is whole."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        sizes[path.name] = path.stat().st_size
        _sync(path)
    marker = folder / _MARKER
    facts = {"schema": SCHEMA, "corpus": content, "files": sizes}
    marker.write_text(json.dumps(facts, sort_keys=True), encoding="utf-8")
    _sync(marker)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def in_chunks(texts: Iterator[Text]) -> Iterator[list[Text]]:
    """The passages, a thousand at a time."""
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def top(scores: Any, k: int) -> list[int]:
    """Numbers of the k highest scores, best first, equal ones by number (`argpartition` would pick any of them)."""
    import numpy as np

    k = min(k, len(scores))
    if k <= 0:
        return []
    numbers = _promising(scores, k)
    values = scores[numbers]
    least = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > least)
    ties = np.flatnonzero(values == least)[: k - len(above)]
    best = np.concatenate([above, ties])
    return [int(number) for number in numbers[best[np.lexsort((best, -values[best]))]]]


def _promising(scores: Any, k: int) -> Any:
    """Numbers, ascending, among which the k highest scores and all that equal the least of them are.

    The k-th highest of the maxima of blocks is no higher than the k-th highest score: one fast pass leaves few.
    """
    import numpy as np

    count = len(scores) // _BLOCK
    if count <= k:
        return np.arange(len(scores))
    blocks, rest = scores[: count * _BLOCK].reshape(count, _BLOCK), scores[count * _BLOCK :]
    maxima = blocks.max(axis=1)
    least = np.partition(maxima, count - k)[count - k]
    held = np.flatnonzero(maxima >= least)
    rows, columns = np.nonzero(blocks[held] >= least)
    return np.concatenate([held[rows] * _BLOCK + columns, count * _BLOCK + np.flatnonzero(rest >= least)])
