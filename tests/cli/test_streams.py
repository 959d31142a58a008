"""Standard streams as a shell may leave them, of `btc` as a process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FULL = "error[BTC581]: cannot write the output: No space left on device\n"


def shell(command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`btc …` with the redirections of a shell."""
    line = f"{shlex.quote(sys.executable)} -m bt_compiler {command}"
    return subprocess.run(
        line, shell=True, capture_output=True, cwd=cwd, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", ["schema", "explain BTC203"])  # more than a buffer holds, and less
def test_a_result_that_nobody_takes_is_an_error_and_no_bug(command: str) -> None:
    ended = shell(f"{command} >/dev/full")
    assert (ended.returncode, ended.stderr.decode().startswith(FULL)) == (2, True), ended.stderr
    assert b"Traceback" not in ended.stderr and b"ignored" not in ended.stderr
    assert shell(f"{command} >/dev/full 2>/dev/full").returncode == 2


def test_an_error_whose_document_nobody_takes_is_told_on_stderr() -> None:
    ended = shell("run nowhere --input {} --json >/dev/full")
    assert (ended.returncode, ended.stderr.startswith(b"error[BTC550]")) == (1, True), ended.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("explain BTC203 >&-", 0),
        ("explain BTC203 2>&-", 0),
        ("show nowhere 2>&-", 1),
        ("run nowhere --input - <&-", 2),
        ("run nowhere --batch - <&- >&- 2>&-", 1),
    ],
)
def test_a_closed_stream_is_an_empty_one(command: str, code: int) -> None:
    ended = shell(command)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (code, False), ended.stderr
    assert (b"error[BTC583]: stdin is not JSON" in ended.stderr) == (code == 2)


@pytest.mark.parametrize("charset", ["cp1252", "latin-1", "ascii"])
def test_letters_that_the_charset_lacks_are_escaped(charset: str, tmp_path: Path) -> None:
    for command in ("sweep --help", "explain BTC585"):
        ended = shell(command, PYTHONIOENCODING=charset)
        assert (ended.returncode, ended.stderr) == (0, b"")
    ended = shell("check --json 'späc 🦊.yaml'", tmp_path, PYTHONIOENCODING=charset)
    (found,) = json.loads(ended.stdout.decode("ascii"))["specs"]
    assert found["spec"] == "späc 🦊.yaml"


def test_help_on_broken_json_fits_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text\nhi\n")
    for given, said, help in (("@one.csv", "`one.csv`", b"--batch"), ("text", "the input", b"single quotes")):
        ended = shell(f"run nowhere --input {given}", tmp_path)
        assert ended.returncode == 2 and ended.stderr.startswith(f"error[BTC583]: {said} is not JSON".encode())
        assert help in ended.stderr


def test_an_input_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    ended = shell("""run nowhere --input '{"size": 1, "size": 2}'""", tmp_path)
    assert ended.returncode == 2 and b"the key `size` is there twice" in ended.stderr
