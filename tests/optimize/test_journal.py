"""The journal: what it keeps, when it starts over, and who may hold it."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bt_compiler.engine.request import Completion
from bt_compiler.errors import CompileError
from bt_compiler.optimize.journal import Journal, journal_folder

IDENTITY = {"seed": 0, "spec": {"modules": "abc", "model": "def"}, "package": {"torch": "2.6"}}
COMPLETION = Completion(text="Mood: good", finish="stop", prompt_tokens=3, completion_tokens=2)


def test_the_journal_lies_beside_the_bundle() -> None:
    assert journal_folder(Path("artifacts/iris")) == Path("artifacts/.iris.compile")


def test_completions_and_memos_survive(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.opened == "new"
        journal.completions.put("key", COMPLETION)
        assert journal.memo("dtype", lambda: {"chosen": "float32", "seconds": (0.1, 0.2)}) == {
            "chosen": "float32",
            "seconds": [0.1, 0.2],
        }
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.opened == "resumed"
        assert journal.completions.get("key").text == "Mood: good"
        assert journal.memo("dtype", lambda: pytest.fail("measured again"))["chosen"] == "float32"


def test_a_memo_that_fails_is_made_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        with pytest.raises(ZeroDivisionError):
            journal.memo("x", lambda: 1 // 0)
        assert journal.memo("x", lambda: 3) == 3


def test_a_value_that_is_not_to_be_kept_is_made_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        for value in (1, 2):
            assert journal.memo("x", lambda value=value: [value], keep=lambda _: False) == [value]
        assert journal.memo("x", lambda: 3) == 3
        assert journal.memo("x", lambda: 4, keep=lambda found: found > 3) == 4
        assert journal.memo("x", lambda: 5) == 4


def test_step_folders_are_kept(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        (journal.step_folder(2) / "checkpoint").write_text("here")
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert (journal.step_folder(2) / "checkpoint").read_text() == "here"


@pytest.mark.parametrize(
    ("identity", "changed"),
    [
        ({**IDENTITY, "seed": 1}, ("seed",)),
        ({**IDENTITY, "spec": {"modules": "abc", "model": "other"}}, ("spec model",)),
        ({**IDENTITY, "package": {"torch": "2.7", "peft": "1"}}, ("package peft", "package torch")),
        ({"seed": 0}, ("package", "spec")),
    ],
)
def test_a_changed_identity_starts_over_and_says_why(tmp_path: Path, identity: dict, changed: tuple[str, ...]) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.completions.put("key", COMPLETION)
        journal.memo("x", lambda: 1)
        journal.step_folder(1)
        journal.finish({"digest": "d"})
    with Journal.open(tmp_path, identity) as journal:
        assert (journal.opened, journal.changed) == ("changed", changed)
        assert journal.completions.get("key") is None
        assert journal.memo("x", lambda: 2) == 2
        assert journal.finished() is None
    assert not (tmp_path / "steps").exists()


def test_fresh_starts_over(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.memo("x", lambda: 1)
    with Journal.open(tmp_path, IDENTITY, fresh=True) as journal:
        assert journal.opened == "fresh"
        assert journal.memo("x", lambda: 2) == 2


def test_finished_is_remembered(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.finished() is None
        journal.finish({"digest": "d"})
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.finished()["digest"] == "d"


def test_an_emptying_that_was_cut_short_leaves_nothing_to_resume(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.memo("x", lambda: 1)
    (tmp_path / "identity.json").unlink()
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.opened == "new"
        assert journal.memo("x", lambda: 2) == 2


def test_the_second_of_two_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        program = (
            "import sys; from pathlib import Path; from bt_compiler.optimize.journal import Journal\n"
            f"Journal.open(Path({str(tmp_path)!r}), {{'other': 1}}, fresh=True)"
        )
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"BTC460]: another compile is writing into `{tmp_path}`: process {os.getpid()}" in second.stderr
        assert journal.memo("x", lambda: 1) == 1
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.opened == "resumed"


def test_a_killed_compile_leaves_no_lock(tmp_path: Path) -> None:
    program = (
        "import os; from pathlib import Path; from bt_compiler.optimize.journal import Journal\n"
        f"journal = Journal.open(Path({str(tmp_path)!r}), {IDENTITY!r}); journal.memo('x', lambda: 1); os._exit(137)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 137
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.memo("x", lambda: 2) == 1


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps({"schema": 99, "identity": {}}))
    with pytest.raises(CompileError, match="BTC464"):
        Journal.open(tmp_path, IDENTITY)
    with Journal.open(tmp_path, IDENTITY, fresh=True) as journal:
        assert journal.opened == "fresh"


def test_a_damaged_store_says_how_to_go_on(tmp_path: Path) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.completions.put("key", COMPLETION)
    for name in ("completions.sqlite-wal", "completions.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "completions.sqlite").write_bytes(b"no database at all, but long enough to be read as one" * 40)
    with pytest.raises(CompileError, match=r"BTC462.*(?s:.)*--fresh"):
        Journal.open(tmp_path, IDENTITY)
    with Journal.open(tmp_path, IDENTITY, fresh=True) as journal:
        assert journal.completions.get("key") is None


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        Journal.open(tmp_path / "file" / "journal", IDENTITY)
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


DAMAGE = ["", "[]", "{}", '{"schema":1,"na']


@pytest.mark.parametrize("text", DAMAGE)
def test_what_is_damaged_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.memo("x", lambda: 1)
        journal.finish({"digest": "d"})
    (tmp_path / "finished.json").write_text(text)
    (memo,) = (tmp_path / "memo").iterdir()
    memo.write_text(text)
    with Journal.open(tmp_path, IDENTITY) as journal:
        assert journal.finished() is None, "the rest of the journal says it once more"
        with pytest.raises(CompileError, match=rf"BTC462.*{memo.name}") as caught:
            journal.memo("x", lambda: 1)
    assert "--fresh" in str(caught.value.diagnostics[0].help)
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(CompileError, match=r"BTC462.*identity\.json"):
        Journal.open(tmp_path, IDENTITY)
    with Journal.open(tmp_path, IDENTITY, fresh=True) as journal:
        assert journal.memo("x", lambda: 2) == 2
