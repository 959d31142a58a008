from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.engine.cache import (
    CompletionCache,
    cache_path,
    cache_root,
    clear_cache,
    completion_from_json,
    completion_to_json,
    request_key,
)
from bt_compiler.engine.request import Completion, Message, OutputGrammar, PromptText, Request, Sampling
from bt_compiler.errors import BackendError
from bt_compiler.graph.candidate import Adapter


def completion(text: str) -> Completion:
    return Completion(text=text, finish="stop", prompt_tokens=7, completion_tokens=2, shared_tokens=5, adapter="a1")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CompletionCache]:
    with CompletionCache(tmp_path / "deep" / "c.sqlite") as opened:
        yield opened


def code_of(error: pytest.ExceptionInfo[BackendError]) -> str:
    (finding,) = error.value.diagnostics
    return finding.code


def test_a_completion_comes_back_whole_and_marked_as_cached(cache: CompletionCache) -> None:
    odd = completion('naïve "quoted"\n\ud83d\ude00 tail'.encode("utf-16", "surrogatepass").decode("utf-16"))
    cache.put("k", odd)
    found = cache.get("k")
    assert found == odd and found.cached
    assert cache.get("other") is None
    cache.put("k", replace(odd, text="newer"))
    assert cache.get("k") == replace(odd, text="newer")


def test_json_leaves_accounting_out() -> None:
    data = completion_to_json(replace(completion("x"), cached=True))
    assert "cached" not in data
    assert completion_from_json(data) == completion("x")


def test_statistics_and_clear(cache: CompletionCache) -> None:
    cache.put_many([(str(number), completion("x" * 500)) for number in range(1000)])
    cache.get("1")
    cache.get("none")
    held = cache.statistics()
    assert (held["entries"], held["hits"], held["misses"]) == (1000, 1, 1)
    assert held["bytes"] > 500_000
    cache.clear()
    cleared = cache.statistics()
    assert cleared["entries"] == 0 and cleared["bytes"] < 100_000
    assert cache.get("1") is None


def test_it_is_there_for_the_next_process(tmp_path: Path) -> None:
    with CompletionCache(tmp_path / "c.sqlite") as first:
        first.put("k", completion("x"))
    with CompletionCache(tmp_path / "c.sqlite") as second:
        assert second.get("k") == completion("x")


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    now = [0.0]
    with CompletionCache(tmp_path / "c.sqlite", 400_000, clock=lambda: now[0]) as cache:
        for number in range(300):
            now[0] += 1
            cache.put(f"old{number}", completion("x" * 300))
        now[0] += 1
        assert all(cache.get(f"old{number}") for number in range(20))
        for number in range(3000):
            now[0] += 1
            cache.put(f"new{number}", completion("x" * 300))
            assert cache.get(f"old{number % 20}"), "what is used stays"
        assert cache.statistics()["bytes"] <= 400_000 * 1.6  # looked at every so many puts
        assert cache.get("new2999") is not None
        assert cache.get("old250") is None
    with CompletionCache(tmp_path / "c.sqlite") as cache:
        assert cache.statistics()["bytes"] <= 400_000
    assert (tmp_path / "c.sqlite").stat().st_size <= 420_000, "space is given back to the file system"


def test_a_cache_without_bound_keeps_everything(tmp_path: Path) -> None:
    with CompletionCache(tmp_path / "c.sqlite", None) as cache:
        for start in range(0, 3000, 100):
            cache.put_many([(str(start + number), completion("x" * 300)) for number in range(100)])
        assert cache.statistics()["entries"] == 3000


WRITER = """
import sys
from pathlib import Path
from bt_compiler.engine.cache import CompletionCache
from bt_compiler.engine.request import Completion
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
cache = CompletionCache(path, None)
for number in range(count):
    cache.put(f"{name}-{number}", Completion(text=name * 50, finish="stop", prompt_tokens=1, completion_tokens=1))
    print(number, flush=True)
    assert cache.get(f"{name}-{number}") is not None
"""


def writer(path: Path, name: str, count: int, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True, **options
    )


def test_several_processes_write_a_new_cache_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    writers = [writer(path, name, 300) for name in "abcd"]
    for process in writers:
        process.communicate(timeout=60)
    assert [process.returncode for process in writers] == [0, 0, 0, 0]
    with CompletionCache(path) as cache:
        assert cache.statistics()["entries"] == 1200


def test_what_was_put_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    process = writer(path, "a", 1_000_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 200:
            break
    os.kill(process.pid, signal.SIGKILL)
    reported = [int(line) for line in process.stdout.read().split("\n")[:-1]] or [200]
    process.stdout.close()
    process.wait()
    with CompletionCache(path) as cache:
        missing = [number for number in range(max(reported) + 1) if cache.get(f"a-{number}") is None]
        assert missing == []
        cache.put("b", completion("goes on"))
        assert cache.get("b") is not None


def test_threads_share_one_cache(cache: CompletionCache) -> None:
    def work(name: str) -> None:
        for number in range(100):
            cache.put(f"{name}{number}", completion(name))
            cache.get(f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.statistics()["entries"] == 300


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look at " * 50, b"SQLite format 3\x00" + b"\x07" * 5000]
)
def test_a_damaged_file_is_explained_and_can_be_cleared(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(content)
    with pytest.raises(BackendError) as caught:
        CompletionCache(path)
    assert code_of(caught) == "BTC360"
    assert "`btc cache --clear`" in str(caught.value)
    assert path.read_bytes() == content, "nothing is deleted unasked"
    clear_cache(path)
    with CompletionCache(path) as cache:
        cache.put("k", completion("x"))


def test_a_page_damaged_in_the_middle_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with CompletionCache(path) as cache:
        cache.put_many([(f"{number:04}", completion("x" * 400)) for number in range(500)])
    data = bytearray(path.read_bytes())
    data[8192:-8192] = b"\xff" * (len(data) - 16384)
    path.write_bytes(data)
    with pytest.raises(BackendError) as caught, CompletionCache(path) as cache:
        for number in range(500):
            cache.get(f"{number:04}")
    assert code_of(caught) == "BTC360"


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE completions (other TEXT)")
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(BackendError) as caught:
        CompletionCache(path)
    assert code_of(caught) == "BTC360"


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    CompletionCache(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(BackendError) as caught:
        CompletionCache(path)
    assert code_of(caught) == "BTC361"
    clear_cache(path)
    CompletionCache(path).close()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendError) as caught:
        CompletionCache(tmp_path / "file" / "c.sqlite")
    assert code_of(caught) == "BTC362"
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(BackendError) as caught:
        CompletionCache(tmp_path / "folder.sqlite")
    assert code_of(caught) == "BTC362"


def test_a_full_disk_is_explained_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with CompletionCache(path) as cache:
        cache.put("k", completion("x"))
        cache._db.execute("PRAGMA max_page_count = 20")  # SQLite's own way to a full disk
        with pytest.raises(BackendError) as caught:
            for number in range(1000):
                cache.put(str(number), completion("x" * 500))
        assert code_of(caught) == "BTC362" and "full" in str(caught.value)
        assert cache.get("k") == completion("x")
        assert cache.get("0") is not None
        cache.clear()
        cache.put("after", completion("x"))
    with CompletionCache(path) as cache:
        assert cache.get("after") is not None and cache.get("k") is None


def test_a_log_left_behind_by_a_deleted_file_is_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    process = writer(path, "a", 1_000_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 50:
            break
    process.kill()
    process.communicate()
    assert path.with_name("c.sqlite-wal").exists()
    path.unlink()
    with CompletionCache(path) as cache:
        assert cache.get("a-1") is None
        cache.put("k", completion("x"))
        assert cache.statistics()["entries"] == 1


def test_where_the_cache_lies(tmp_path: Path) -> None:
    assert cache_root({"BTC_CACHE": "/x/y", "XDG_CACHE_HOME": "/z"}) == Path("/x/y")
    assert cache_root({"BTC_CACHE": "", "XDG_CACHE_HOME": "/z"}) == Path("/z/btc")
    assert cache_root({}) == Path.home() / ".cache" / "btc"
    with CompletionCache.at(tmp_path) as cache:
        assert cache.statistics()["path"] == str(cache_path(tmp_path))


class Model:
    """What `request_key` asks of a backend."""

    def __init__(self, **identity: str) -> None:
        self._identity = identity

    def identity(self) -> Mapping[str, str]:
        return self._identity

    def prompt_key(self, prompt: PromptText) -> Sequence[int] | str:
        return [ord(char) for message in prompt.messages for char in message.content]


def request(**changes: Any) -> Request:
    plain = Request(id="1", prompt=PromptText(messages=(Message(role="user", content="hi"),)), grammar=None)
    return replace(plain, **changes)


def test_keys_tell_apart_what_changes_an_answer() -> None:
    model: Any = Model(model="m", dtype="float32")
    adapter = Adapter(name="x", path=Path("/x"), base_model="m", base_digest="d", rank=4, sha256="s1")
    warm = Sampling(temperature=0.7, seed=1)
    different = [
        request(),
        request(prompt=PromptText(messages=(Message(role="user", content="ho"),))),
        request(adapter=adapter),
        request(adapter=replace(adapter, sha256="s2")),
        request(sampling=warm),
        request(sampling=replace(warm, seed=2)),
        request(sampling=replace(warm, top_p=0.5)),
        request(max_tokens=9),
        request(grammar=OutputGrammar(lark="start: /a/")),
        request(grammar=OutputGrammar(lark="start: /b/")),
    ]
    keys = [request_key(model, item) for item in different]
    keys += [
        request_key(other, request()) for other in (Model(model="n", dtype="float32"), Model(model="m", dtype="x"))
    ]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)


def test_keys_do_not_see_what_changes_nothing() -> None:
    model: Any = Model(model="m")
    adapter = Adapter(name="x", path=Path("/x"), base_model="m", base_digest="d", rank=4, sha256="s1")
    base = request_key(model, request())
    assert request_key(model, request(id="2")) == base
    assert request_key(model, request(sampling=Sampling(seed=5, top_p=0.3))) == base  # greedy has no noise
    assert request_key(model, request(adapter=adapter)) == request_key(
        model, request(adapter=replace(adapter, name="y", path=Path("/y")))
    )
