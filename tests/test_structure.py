"""The house rules that a machine can hold: sizes, names, layers, exports, codes both used and explained."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bt_compiler
from bt_compiler.diagnostics import explain, known_codes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bt_compiler"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|misc)(_|$)")
CODE = re.compile(r"\bBTC\d{3}\b")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_stay_short(path: Path) -> None:
    long = [f"{name}: {lines} lines" for name, lines in functions(path) if lines > MOST_FUNCTION_LINES]
    assert long == []


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Every function with its lines, the docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node) is not None
            documentation = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - documentation


def test_names_say_what_a_file_holds() -> None:
    named = {path.stem for path in SOURCES} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert [name for name in sorted(named) if VAGUE.search(name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def modules() -> list[str]:
    """Packages of bt_compiler that name what they export, itself first."""
    found = ["bt_compiler"]
    for info in pkgutil.walk_packages(bt_compiler.__path__, "bt_compiler."):
        path = PACKAGE.parent / Path(*info.name.split(".")) / "__init__.py"
        if info.ispkg and "__all__" in path.read_text(encoding="utf-8"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", modules())
def test_exports_exist_and_are_sorted_once(name: str) -> None:
    module = importlib.import_module(name)
    assert [export for export in module.__all__ if not hasattr(module, export)] == []
    assert len(set(module.__all__)) == len(module.__all__)


def test_the_public_names() -> None:
    runtime = ["InputError", "Outputs", "PredictionError", "Predictor"]
    assert bt_compiler.__all__ == ["BtcError", *runtime, "__version__", "compile_spec", "load"]
    assert set(bt_compiler.__all__) <= set(dir(bt_compiler))
    missing = "no_such_name"
    assert not hasattr(bt_compiler, missing)


def test_a_type_checker_sees_the_public_names_and_no_others(tmp_path: Path) -> None:
    user = tmp_path / "user.py"
    user.write_text(f"from bt_compiler import {', '.join(bt_compiler.__all__)}, nothing_so_called\n")
    settings = ["--config-file=", "--follow-imports=skip", "--no-implicit-reexport", f"--cache-dir={tmp_path}"]
    command = [sys.executable, "-m", "mypy", *settings, str(PACKAGE / "__init__.py"), str(user)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert [line.partition("error: ")[2] for line in ended.stdout.splitlines() if "error:" in line] == [
        'Module "bt_compiler" has no attribute "nothing_so_called"  [attr-defined]'
    ]


def codes_in_source() -> dict[str, str]:
    """Code -> a file that says it: in string literals that are not docstrings, and in templates of errors."""
    found: dict[str, str] = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = set(docstrings(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found |= dict.fromkeys(CODE.findall(node.value), name_of(path))
    return found


def docstrings(tree: ast.AST) -> Iterator[int]:
    """Identities of the constants that stand as statements: docstrings of modules, classes, functions and fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield id(node.value)


def test_every_code_is_explained() -> None:
    assert {code: path for code, path in codes_in_source().items() if explain(code) is None} == {}


def test_every_explanation_is_of_a_code_in_use() -> None:
    assert sorted(set(known_codes()) - set(codes_in_source())) == []


def test_explanations_have_substance() -> None:
    assert len(known_codes()) > 50
    for code in known_codes():
        info = explain(code)
        assert info is not None and CODE.fullmatch(code)
        assert info.title and not info.title.endswith("."), code
        assert len(info.text) >= 60, code
        referred = set(CODE.findall(info.text)) - set(known_codes())
        assert referred == set(), f"{code} names {referred}"


def test_layers_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout
    assert "0 broken" in ended.stdout
