"""The completion cache: what a model once answered is never asked again, by any process on the machine.

One SQLite file in WAL mode. A put is its own transaction: once it returns, the completion survives the process being
killed. Knows keys and completions; what makes two requests equal is said by `request_key` alone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self, TypedDict

from bt_compiler.canonical import digest
from bt_compiler.engine.request import Backend, Completion, Request
from bt_compiler.errors import BackendError

SCHEMA = 1
"""Version of the file's layout, kept in SQLite's `user_version`."""
KEY_VERSION = 1
"""Part of every key: raised when the same request would have to be answered anew."""
MAX_BYTES = 1 << 30
"""Default bound of the cache on disk, in bytes."""
_BUSY_SECONDS = 60.0
_CHECK_EVERY = 512
"""Puts between two looks at the size."""
_TOUCH_EVERY = 256
"""Hits whose time of use is written together."""
_EVICT_ROWS = 1000
"""Rows that go in one transaction, so that other processes never wait long."""


class CompletionStore(Protocol):
    """Completions by key: the cache of the machine, or the journal of one compile."""

    def get(self, key: str) -> Completion | None:
        """The completion with `cached` set, or None."""
        ...

    def put(self, key: str, completion: Completion) -> None:
        """Keeps a completion; survives the end of the process once it returns. An equal key is overwritten."""
        ...

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Several puts at the price of one."""
        ...


def cache_root(env: Mapping[str, str]) -> Path:
    """Folder of all caches: `$BTC_CACHE`, else `$XDG_CACHE_HOME/btc`, else `~/.cache/btc`. It may not exist yet."""
    if env.get("BTC_CACHE"):
        return Path(env["BTC_CACHE"]).expanduser()
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "btc"


def cache_path(root: Path) -> Path:
    """The completion cache under a cache root."""
    return root / "completions.sqlite"


def request_key(backend: Backend, request: Request) -> str:
    """What the completion depends on, as SHA-256: the prompt as the model sees it, the backend with model and dtype,
    the adapter's content, sampling with its seed (none when greedy), the token limit and the grammar.
    """
    prompt = backend.prompt_key(request.prompt)
    sampling = request.sampling
    greedy = sampling.temperature == 0
    return digest(
        {
            "version": KEY_VERSION,
            "prompt": prompt if isinstance(prompt, str) else [int(token) for token in prompt],
            "backend": dict(backend.identity()),
            "adapter": None if request.adapter is None else request.adapter.sha256,
            "sampling": None if greedy else [sampling.temperature, sampling.top_p, sampling.seed],
            "max_tokens": request.max_tokens,
            "grammar": None if request.grammar is None else digest(request.grammar.lark),
            **({} if request.choices is None else {"choices": list(request.choices)}),
        }
    )


def completion_to_json(completion: Completion) -> dict[str, Any]:
    """The result as JSON values; `cached` is accounting and left out."""
    return {
        "text": completion.text,
        "finish": completion.finish,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "shared_tokens": completion.shared_tokens,
        "adapter": completion.adapter,
        **({"chances": list(completion.chances)} if completion.chances else {}),
    }


def completion_from_json(data: Mapping[str, Any]) -> Completion:
    """The inverse; `cached` is set, for whoever reads it back did not pay for it. Raises KeyError or TypeError."""
    return replace(Completion(**{**data, "chances": tuple(data.get("chances", ()))}), cached=True)


class CacheStatistics(TypedDict):
    """What a cache holds, as JSON values."""

    path: str
    entries: int
    bytes: int
    """Bytes in use within the file."""
    max_bytes: int | None
    hits: int
    """Since this process opened it."""
    misses: int


class CompletionCache:
    """A `CompletionStore` in one SQLite file that several processes and threads may use at once.

    Beyond `max_bytes` (None: no bound) the least recently used tenth goes. Raises BackendError: BTC360 (the file
    is damaged), BTC361 (written by a newer version), BTC362 (cannot be opened or written), BTC363 (locked too long).
    """

    def __init__(
        self, path: Path, max_bytes: int | None = MAX_BYTES, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._touched: set[str] = set()
        self._puts = 0
        self._hits = 0
        self._misses = 0
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite's own wait does not cover the change to WAL: one process at a time opens the file.
            with file_lock(path.with_name(path.name + ".lock")):
                self._db = _open(path)

    @classmethod
    def at(cls, root: Path) -> Self:
        """The cache under a cache root, with the default bound."""
        return cls(cache_path(root))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str) -> Completion | None:
        """The completion with `cached` set, or None."""
        with self._lock, _explained(self.path):
            row = self._db.execute("SELECT value FROM completions WHERE key = ?", (key,)).fetchone()
            if row is None:
                self._misses += 1
                return None
            self._hits += 1
            self._touched.add(key)
            if len(self._touched) >= _TOUCH_EVERY:
                self._write_uses()
            try:
                return completion_from_json(json.loads(row[0]))
            except (ValueError, TypeError) as error:
                raise _damaged(self.path, error) from error

    def put(self, key: str, completion: Completion) -> None:
        """Keeps a completion; survives the end of the process once it returns."""
        self.put_many([(key, completion)])

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Several puts in one transaction."""
        now = int(self._clock())
        rows = [(key, json.dumps(completion_to_json(value), ensure_ascii=False), now) for key, value in items]
        with self._lock, _explained(self.path):
            with _transaction(self._db):
                self._db.executemany("INSERT OR REPLACE INTO completions (key, value, used) VALUES (?, ?, ?)", rows)
            self._puts += len(rows)
            if self._puts >= _CHECK_EVERY:
                self._puts = 0
                self._evict()

    def statistics(self) -> CacheStatistics:
        """Entries, bytes in use, and this process's hits and misses."""
        with self._lock, _explained(self.path):
            (entries,) = self._db.execute("SELECT count(*) FROM completions").fetchone()
            return CacheStatistics(
                path=str(self.path),
                entries=entries,
                bytes=self._bytes(),
                max_bytes=self.max_bytes,
                hits=self._hits,
                misses=self._misses,
            )

    def clear(self) -> None:
        """Forgets every completion and gives the space back; other processes may go on using the cache."""
        with self._lock, _explained(self.path):
            self._touched.clear()
            self._db.execute("DELETE FROM completions")
            self._give_back()

    def close(self) -> None:
        """Writes what is pending and closes the file. The cache cannot be used afterwards."""
        with self._lock, _explained(self.path):
            self._write_uses()
            self._evict()
            self._db.close()

    def _bytes(self) -> int:
        pages, free, size = (
            self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _write_uses(self) -> None:
        now = int(self._clock())
        touched, self._touched = self._touched, set()
        with _transaction(self._db):
            self._db.executemany("UPDATE completions SET used = ? WHERE key = ?", [(now, key) for key in touched])

    def _evict(self) -> None:
        if self.max_bytes is None or self._bytes() <= self.max_bytes:
            return
        if self._touched:
            self._write_uses()
        (entries,) = self._db.execute("SELECT count(*) FROM completions").fetchone()
        rows = max(1, min(_EVICT_ROWS, entries // 20))
        while self._bytes() > self.max_bytes * 0.9:
            gone = self._db.execute(
                "DELETE FROM completions WHERE rowid IN (SELECT rowid FROM completions ORDER BY used, rowid LIMIT ?)",
                (rows,),
            ).rowcount
            if gone == 0:
                break
        self._give_back()

    def _give_back(self) -> None:
        """Hands freed pages back to the file system; a script, because the statement frees one page a step."""
        self._db.executescript("PRAGMA incremental_vacuum;")


def clear_cache(path: Path) -> None:
    """Empties the cache; a damaged or newer file is deleted. Raises BackendError BTC362 and BTC363."""
    try:
        with CompletionCache(path) as cache:
            cache.clear()
    except BackendError as error:
        if error.diagnostics[0].code not in ("BTC360", "BTC361"):
            raise
        with _explained(path):
            for name in (path, *_side_files(path)):
                name.unlink(missing_ok=True)


def _side_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        for name in _side_files(path):  # a log left behind by a deleted file would be replayed into the new one
            name.unlink(missing_ok=True)
    db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise BackendError.of(
                "BTC361",
                f"the completion cache `{path}` was written by a newer version",
                notes=[f"its layout is {version}, this version reads {SCHEMA}"],
                help="update the package, name another folder in `BTC_CACHE`, or delete it with `btc cache --clear`",
            )
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect in an empty file alone
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA journal_size_limit = 16777216")
        if version == 0:
            with _transaction(db):
                db.execute(
                    "CREATE TABLE IF NOT EXISTS completions "
                    "(key TEXT UNIQUE NOT NULL, value TEXT NOT NULL, used INTEGER NOT NULL)"
                )
                db.execute("CREATE INDEX IF NOT EXISTS by_use ON completions (used)")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("SELECT key, value, used FROM completions LIMIT 1").fetchone()
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file `path`; freed however the process ends. Raises OSError."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """IMMEDIATE: a transaction that has to become a writer halfway fails at once instead of waiting."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:  # a full disk has rolled back by itself
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """The boundary at which SQLite's errors become ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise BackendError.of(
                "BTC363",
                f"the completion cache `{path}` stayed locked for {_BUSY_SECONDS:.0f} seconds",
                help="see which process holds it, or name another folder in `BTC_CACHE`",
            ) from error
        if code == sqlite3.SQLITE_ERROR:  # no such table or column: somebody else's database
            raise _damaged(path, error) from error
        raise _unusable(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _damaged(path: Path, error: Exception) -> BackendError:
    return BackendError.of(
        "BTC360",
        f"the completion cache `{path}` is damaged: {error}",
        help="delete it with `btc cache --clear`; only time is lost, every completion can be made again",
    )


def _unusable(path: Path, reason: str) -> BackendError:
    return BackendError.of(
        "BTC362",
        f"the completion cache `{path}` cannot be used: {reason.lower()}",
        help="name a folder that can be written, on a disk with room, in `BTC_CACHE`",
    )
