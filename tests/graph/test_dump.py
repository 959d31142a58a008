"""Golden dumps of every file in `specs/`; `pytest --rewrite-expected` writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bt_compiler.graph import Program, lower, program_from_json, program_mermaid, program_text, program_to_json
from bt_compiler.spec import build_sections, load_spec

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


def lowered(path: Path) -> Program:
    spec = load_spec(path)
    return lower(spec, build_sections(spec))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("suffix", "dump"), [("txt", program_text), ("mmd", program_mermaid)], ids=["text", "mermaid"])
def test_golden(path: Path, suffix: str, dump: object, request: pytest.FixtureRequest) -> None:
    assert callable(dump)
    found = dump(lowered(path))
    golden = GOLDEN / f"{path.stem}.{suffix}"
    if request.config.getoption("--rewrite-expected"):
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


def test_every_spec_begins_with_the_line_for_editors() -> None:
    for path in SPECS:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=../bt_compiler/spec/schema.json", path.name


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_json_and_back_is_the_same_program(path: Path) -> None:
    program = lowered(path)
    assert program_from_json(program_to_json(program)) == program


def test_names_beyond_ascii_give_plain_mermaid_ids(tmp_path: Path) -> None:
    spec = tmp_path / "s.yaml"
    spec.write_text('version: 1\ndata: d.csv\nmodules: {größe: {signature: "täxt -> wört"}}\nmetric: accuracy\n')
    lines = program_mermaid(lowered(spec)).splitlines()
    assert lines[1] == '  in_t_e4_xt(["täxt: str"])'
    assert lines[2] == '  n_gr_f6__df_e["größe<br/>call größe"]'
