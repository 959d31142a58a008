"""The built wheel in an empty environment, as a user without any extra has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "BTC_CACHE")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a virtual environment `env` that holds the wheel and its core requirements alone."""
    folder = tmp_path_factory.mktemp("empty")
    built = run(
        sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", folder / "dist", REPOSITORY, cwd=folder
    )
    assert built.returncode == 0, built.stderr
    run(sys.executable, "-m", "venv", "env", cwd=folder)
    constraints = REPOSITORY / ".ci" / "constraints.txt"
    (wheel,) = (folder / "dist").glob("*.whl")
    installed = run("env/bin/pip", "install", "--quiet", "-c", constraints, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_has_its_licence_and_says_that_it_is_typed(empty: Path) -> None:
    (wheel,) = (empty / "dist").glob("*.whl")
    with ZipFile(wheel) as packed:
        names = packed.namelist()
        (licence,) = (name for name in names if name.endswith(".dist-info/licenses/bt_compiler/LICENSE"))
        assert b"Apache License" in packed.read(licence)
        (facts,) = (packed.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert "bt_compiler/py.typed" in names
    assert "License-File: bt_compiler/LICENSE\n" in facts


@pytest.mark.slow
def test_init_and_check_without_any_extra(empty: Path) -> None:
    made = run("env/bin/btc", "init", "demo", cwd=empty)
    assert made.returncode == 0, made.stderr
    checked = run("env/bin/btc", "check", "demo/spec.yaml", cwd=empty)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == "demo/spec.yaml: ok (1 module(s), 30 train / 15 dev / 15 test examples)\n"
    planned = run("env/bin/btc", "plan", "demo/spec.yaml", cwd=empty)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.slow
def test_what_needs_an_extra_names_it(empty: Path) -> None:
    run("env/bin/btc", "init", "other", cwd=empty)
    compiled = run("env/bin/btc", "compile", "other/spec.yaml", cwd=empty)
    assert compiled.returncode == 2
    assert "Traceback" not in compiled.stderr
    assert "error[BTC584]" in compiled.stderr
    assert "pip install 'bt-compiler[train]'" in compiled.stderr
