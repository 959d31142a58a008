"""The journal of one compile: what was expensive, kept on disk, so that the same command goes on where it stopped.

A compile is a deterministic function whose expensive parts are memoised here: completions as they end, JSON values
under a name, and one folder a step for checkpoints. A resume runs the same code again and is handed everything that
was finished. Nothing here says how far a compile has come; that follows from replaying it.

A journal of another identity is set aside until the new one holds something that was paid for. A compile that cannot
start (a server is down, a model's name is mistyped) or is killed before that leaves the earlier one as it was.

    artifacts/.iris.compile/
      lock                 held by the compile that is running
      identity.json        what the compile is a function of; another identity starts over
      completions.sqlite   every completion this compile asked for
      memo/                measured choices, accounts of finished steps: one file a name
      steps/02-weights/    checkpoints and adapters of a step
      finished.json        the digest of the bundle that came of it
      former/              all that of an earlier journal, its identity among it once it is whole

Knows nothing of specs, programs or optimisers.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Self

from bt_compiler.canonical import canonical_json, digest
from bt_compiler.engine.cache import CompletionCache, CompletionStore
from bt_compiler.engine.request import Completion
from bt_compiler.errors import BackendError, CompileError

SCHEMA = 1
FORMER = "former"
_DROPPED = "dropped"
"""What `former` is called while it is being removed."""
Opened = Literal["new", "resumed", "fresh", "changed"]


class StepJournal(Protocol):
    """What of a journal the steps of one strategy see."""

    @property
    def completions(self) -> CompletionStore:
        """Every completion asked for."""
        ...

    def memo(self, name: str, make: Callable[[], Any], *, keep: Callable[[Any], bool] = lambda value: True) -> Any:
        """A JSON value that is made once for all, or until it is one to `keep`."""
        ...

    def step_memo(self, index: int, name: str, make: Callable[[], Any]) -> Any:
        """A JSON value that is made once for step `index` (from 1) of this strategy."""
        ...

    def step_folder(self, index: int) -> Path:
        """The folder of step `index` (from 1) for checkpoints and adapters; created where missing."""
        ...


def journal_folder(out: Path) -> Path:
    """Where the journal of the bundle `out` lies: `artifacts/.iris.compile` for `artifacts/iris`."""
    return out.parent / f".{out.name}.compile"


class Journal:
    """One open journal; use as a context manager. Holds the lock until it is closed."""

    def __init__(self, folder: Path, lock: IO[str], *, opened: Opened, changed: tuple[str, ...]) -> None:
        self.folder = folder
        self.opened: Opened = opened
        self.changed = changed
        self._lock = lock
        self._aside = opened in ("fresh", "changed")
        # Unbounded: a journal must not forget what was paid for.
        with _explained(folder):
            self._store = _JournalStore(CompletionCache(folder / "completions.sqlite", None), folder, self._keep)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> Self:
        """Opens or creates the journal in `folder` for a compile with `identity` (JSON, names for people as keys).

        An earlier journal gives way where `fresh` asks for it or its identity differs; `opened` and `changed` say
        which. It is removed with the first completion that is new, the first folder of a step or the end of the `with`,
        and put back where an exception ends that before. Raises `CompileError`: BTC460 where another compile holds the
        folder, BTC464 where the identity file is of a newer version. Raises OSError where the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            opened, changed = _prepare(folder, json.loads(canonical_json(identity)), fresh=fresh)
            return cls(folder, lock, opened=opened, changed=changed)
        except BaseException:
            with lock:
                _put_back(folder)
            raise

    @property
    def completions(self) -> CompletionStore:
        """Every completion of this compile, unbounded; the first store an engine asks."""
        return self._store

    def memo(self, name: str, make: Callable[[], Any], *, keep: Callable[[Any], bool] = lambda value: True) -> Any:
        """The JSON value that `make` gave the first time `name` was asked for, in this run or an earlier one.

        The value goes through JSON the first time too, so that a resumed run sees exactly what the first one saw.
        Values that are not to `keep` are made again whenever they are asked for. Raises CompileError BTC462 where what
        was kept is damaged.
        """
        path = self.folder / "memo" / f"{digest(name)[:24]}.json"
        if path.exists():
            value = _read(path, "value")["value"]
            if keep(value):
                return value
        value = json.loads(canonical_json(make()))
        if keep(value):
            _write(path, {"schema": SCHEMA, "name": name, "value": value})
        return value

    def step_memo(self, index: int, name: str, make: Callable[[], Any]) -> Any:
        """As `memo`, of step `index` (from 1)."""
        return self.memo(f"{name} of step {index}", make)

    def step_folder(self, index: int) -> Path:
        """The folder of step `index` (from 1) for checkpoints and adapters; created where missing."""
        return self.kept_folder("steps", f"{index:02d}")

    def kept_folder(self, *names: str) -> Path:
        """A folder for what is paid for; created where missing."""
        folder = self.folder.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        self._keep()
        return folder

    def finish(self, record: Mapping[str, Any]) -> None:
        """Marks the compile as finished; `record` names the bundle and its digest."""
        _write(self.folder / "finished.json", {"schema": SCHEMA, **record})
        self._keep()

    def finished(self) -> Mapping[str, Any] | None:
        """The record of `finish`, None while the compile is not finished."""
        path = self.folder / "finished.json"
        try:
            return _read(path, "digest") if path.exists() else None
        except CompileError:
            return None  # damaged: all that it says follows from the rest of the journal once more

    def _keep(self) -> None:
        """From now on this journal is worth more than the one before it."""
        if self._aside:
            self._aside = False
            (self.folder / FORMER).replace(self.folder / _DROPPED)
            shutil.rmtree(self.folder / _DROPPED)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what is pending and gives the lock back; this journal stays on disk, or the one that it followed."""
        with self._lock:
            self._store.close()
            if kind is None:
                self._keep()
            elif self._aside:
                _put_back(self.folder)


class _JournalStore:
    """The journal's own completions. What is wrong with their file is not a matter of the cache folder."""

    def __init__(self, store: CompletionCache, folder: Path, paid: Callable[[], None]) -> None:
        """`paid` is called when completions are on disk that no cache had."""
        self._store = store
        self._folder = folder
        self._paid = paid

    def get(self, key: str) -> Completion | None:
        """The completion with `cached` set, or None."""
        with _explained(self._folder):
            return self._store.get(key)

    def put(self, key: str, completion: Completion) -> None:
        """Keeps a completion; it survives the end of the process once this returns."""
        self.put_many([(key, completion)])

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Several puts in one transaction."""
        with _explained(self._folder):
            self._store.put_many(items)
        if not all(completion.cached for _, completion in items):
            self._paid()

    def close(self) -> None:
        """Closes the file."""
        with _explained(self._folder):
            self._store.close()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        raise CompileError.of(
            "BTC462",
            f"the journal `{folder}` cannot be used: {error.diagnostics[0].message}",
            help="make room on the disk and run the same command again; where the file is damaged, start over with "
            "`--fresh`",
        ) from error


def _locked(folder: Path) -> IO[str]:
    lock = (folder / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise CompileError.of(
            "BTC460",
            f"another compile is writing into `{folder}`: {holder}",
            help="wait until it ends, or compile into another folder with `-o`",
        ) from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def _prepare(folder: Path, identity: dict[str, Any], *, fresh: bool) -> tuple[Opened, tuple[str, ...]]:
    _put_back(folder)
    path = folder / "identity.json"
    opened: Opened = "new"
    changed: tuple[str, ...] = ()
    if path.exists():
        if fresh:
            opened = "fresh"
        else:
            changed = _changes(_read_identity(path), identity)
            if not changed:
                return "resumed", ()
            opened = "changed"
        _set_aside(folder)
    _empty(folder)
    _write(path, {"schema": SCHEMA, "identity": identity})
    return opened, changed


def _read_identity(path: Path) -> dict[str, Any]:
    document = _read(path, "identity")
    if document["schema"] > SCHEMA:
        raise CompileError.of(
            "BTC464",
            f"the journal `{path.parent}` has schema {document['schema']}, this version reads up to {SCHEMA}",
            help="upgrade, or start over with `--fresh`",
        )
    identity: dict[str, Any] = document["identity"]
    return identity


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of what differs, one level deep: `seed`, `packages torch`."""
    names: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            inner = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
            names.extend(f"{key} {name}" for name in inner)
        else:
            names.append(key)
    return tuple(names)


def _empty(folder: Path) -> None:
    """Removes what is no journal, an identity first, so that a crash in between leaves none that could be resumed."""
    (folder / "identity.json").unlink(missing_ok=True)
    for entry in _entries(folder):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _set_aside(folder: Path) -> None:
    """Moves the journal into `former`, its identity last: with it there, all that lies outside is another's."""
    former = folder / FORMER
    former.mkdir()
    for entry in _entries(folder):
        if entry.name != "identity.json":
            entry.replace(former / entry.name)
    (folder / "identity.json").replace(former / "identity.json")


def _put_back(folder: Path) -> None:
    """Undoes `_set_aside`, whole or cut short anywhere, as this may be too; ends a removal that was."""
    former = folder / FORMER
    if (former / "identity.json").exists():
        _empty(folder)
        (former / "identity.json").replace(folder / "identity.json")
    if former.is_dir():
        for entry in sorted(former.iterdir()):
            entry.replace(folder / entry.name)
        former.rmdir()
    if (folder / _DROPPED).is_dir():
        shutil.rmtree(folder / _DROPPED)


def _entries(folder: Path) -> list[Path]:
    """All but the lock and what was set aside; the database before its log."""
    return [entry for entry in sorted(folder.iterdir()) if entry.name not in ("lock", FORMER)]


def _read(path: Path, wanted: str) -> dict[str, Any]:
    """What `_write` wrote, with `wanted` in it. Raises CompileError (BTC462) where the file is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(document, dict) or not isinstance(document.get("schema"), int) or wanted not in document:
        raise _damaged(path)
    return document


def _damaged(path: Path) -> CompileError:
    return CompileError.of("BTC462", f"the journal file `{path}` is damaged", help="start over with `--fresh`")


def _write(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Writes JSON by temp file, fsync and rename; returns it as a reader will see it."""
    text = canonical_json(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    written: dict[str, Any] = json.loads(text)
    return written
