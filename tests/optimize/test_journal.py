"""The journal: what it keeps, when it starts over, and who may hold it."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bt_compiler.engine.request import Completion
from bt_compiler.errors import CompileError
from bt_compiler.optimize.branch import Branch
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


OTHER = {**IDENTITY, "seed": 1}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A finished journal with one of everything."""
    with Journal.open(tmp_path, IDENTITY) as journal:
        journal.completions.put("key", COMPLETION)
        journal.memo("x", lambda: 1)
        (journal.step_folder(1) / "checkpoint").write_text("here")
        journal.finish({"digest": "d"})
    return tmp_path


def holds_all(folder: Path) -> bool:
    with Journal.open(folder, IDENTITY) as journal:
        return (
            journal.opened == "resumed"
            and journal.completions.get("key") == COMPLETION
            and journal.memo("x", lambda: 2) == 1
            and (folder / "steps" / "01" / "checkpoint").read_text() == "here"
            and journal.finished() is not None
            and not (folder / "former").exists()
        )


@pytest.mark.parametrize("fresh", [False, True])
def test_what_ends_before_anything_is_paid_for_leaves_the_earlier_journal(earlier: Path, *, fresh: bool) -> None:
    with pytest.raises(ZeroDivisionError), Journal.open(earlier, OTHER, fresh=fresh) as journal:
        assert journal.opened == ("fresh" if fresh else "changed")
        journal.memo("dtype", lambda: "float32")
        journal.completions.put("other", replace(COMPLETION, cached=True))
        raise ZeroDivisionError
    assert holds_all(earlier)


PAID: dict[str, Callable[[Journal], object]] = {
    "completion": lambda journal: journal.completions.put("other", COMPLETION),
    "folder": lambda journal: journal.step_folder(1),
    "branch": lambda journal: Branch(journal, seed=0, steps=("weights",)).step_folder(1),
    "finish": lambda journal: journal.finish({"digest": "e"}),
}


@pytest.mark.parametrize("paid", PAID)
def test_what_was_paid_for_takes_the_place_of_the_earlier_journal(earlier: Path, paid: str) -> None:
    with pytest.raises(ZeroDivisionError), Journal.open(earlier, OTHER) as journal:
        PAID[paid](journal)
        assert not (earlier / "former").exists()
        raise ZeroDivisionError
    with Journal.open(earlier, OTHER) as journal:
        assert journal.opened == "resumed"


def test_a_kill_at_any_change_of_the_folder_loses_no_journal(earlier: Path, tmp_path_factory: Any) -> None:
    """Of the one that is set aside and put back, until the other one holds something."""
    program = """
import os, shutil, sys
from pathlib import Path
from bt_compiler.optimize.journal import Journal
def killed(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        left -= 1
        if left < 0:
            os._exit(137)
for changes in range(40):
    folder = Path(sys.argv[2], str(changes))
    shutil.copytree(sys.argv[1], folder)
    child = os.fork()
    if child == 0:
        left = changes
        sys.addaudithook(killed)
        with Journal.open(folder, eval(sys.argv[3])) as journal:
            journal.memo("dtype", lambda: "float32")
            1 / 0
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 137:
        break
"""
    copies = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", program, str(earlier), str(copies), repr(OTHER)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    found = {folder.name: holds_all(folder) for folder in copies.iterdir()}
    assert 15 < len(found) < 40 and all(found.values()), found


def test_a_put_back_that_was_killed_goes_on(earlier: Path) -> None:
    former = earlier / "former"
    former.mkdir()
    for name in ("memo", "steps"):
        (earlier / name).rename(former / name)  # the rest lies outside again, its identity first
    assert holds_all(earlier)


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
