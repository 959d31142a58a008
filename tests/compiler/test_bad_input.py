"""Every spec in `tests/graph/bad` and `tests/data/bad` ends in comments with what `btc check` says of it.

`pytest --rewrite-expected` writes them. A name that begins with `noted_` or `warned_` passes the check, with notes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bt_compiler.compiler.check import checked
from bt_compiler.diagnostics import explain, known_codes, render
from bt_compiler.errors import BtcError

TESTS = Path(__file__).parents[1]
FOLDERS = (TESTS / "graph" / "bad", TESTS / "data" / "bad")
CASES = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
MARK = "# ---- expected\n"
ELSEWHERE = {"BTC304", "BTC318", "BTC322", "BTC327"}
"""What needs a machine that no file can be: see `test_files`, `test_packed` and `test_toy_sets` in `tests/data`."""


def said_of(path: Path) -> str:
    try:
        found = checked(Path(path.name)).warnings
    except BtcError as error:
        assert not path.name.startswith(("noted_", "warned_"))
        return render(error.diagnostics)
    assert path.name.startswith(("noted_", "warned_")), "passes the check"
    return render(found)


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_bad_input(path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(path.parent)
    text, _, expected = path.read_text(encoding="utf-8").partition(MARK)
    if request.config.getoption("--rewrite-expected"):
        path.write_text(text + MARK, encoding="utf-8")
        lines = "".join(f"# {line}".rstrip() + "\n" for line in said_of(path).replace(str(TESTS), "TESTS").splitlines())
        path.write_text(text + MARK + lines, encoding="utf-8")
        return
    found = "\n".join(line.rstrip() for line in said_of(path).replace(str(TESTS), "TESTS").splitlines())
    assert found == "\n".join(line.removeprefix("#").removeprefix(" ") for line in expected.splitlines())


def test_each_code_of_graph_and_data_is_shown() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in CASES)
    codes = [code for code in known_codes() if "BTC200" <= code < "BTC350"]
    assert {code for code in codes if f"[{code}]" not in shown} == ELSEWHERE


def test_each_code_that_is_shown_can_be_explained() -> None:
    for path in CASES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("# error[", "# warning[", "# note[")):
                assert explain(line.partition("[")[2][:6]) is not None, path.name
