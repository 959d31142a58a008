"""Every spec under `bad/` ends in comments with the diagnostics it gets; `pytest --rewrite-expected` writes them.

Lines `# set: a.b=value` at the top are `--set` arguments.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bt_compiler.diagnostics import explain, known_codes, render
from bt_compiler.errors import SpecError
from bt_compiler.spec import build_sections, load_spec

BAD = Path(__file__).parent / "bad"
MARK = "# ---- expected\n"
FROM_FILES = {"BTC002", "BTC003", "BTC004", "BTC005", "BTC022"}
"""What needs a file that no text can be: see `test_spec_files`."""


def diagnostics_of(path: Path) -> str:
    head = path.read_text(encoding="utf-8").splitlines()
    overrides = [line.removeprefix("# set: ") for line in head if line.startswith("# set: ")]
    with pytest.raises(SpecError) as caught:
        build_sections(load_spec(Path(path.name), overrides=overrides))
    return render(caught.value.diagnostics)


@pytest.mark.parametrize("name", sorted(path.name for path in BAD.glob("*.yaml") if not path.name.startswith("_")))
def test_bad_spec(name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.chdir(BAD)
    path = BAD / name
    text, _, expected = path.read_text(encoding="utf-8").partition(MARK)
    if request.config.getoption("--rewrite-expected"):
        if MARK not in path.read_text(encoding="utf-8"):
            path.write_text(text + MARK + "#\n", encoding="utf-8")  # what stands below may be part of the finding
        found = diagnostics_of(path)
        lines = "".join(f"# {line}".rstrip() + "\n" for line in found.splitlines())
        path.write_text(text + MARK + lines, encoding="utf-8")
        return
    assert diagnostics_of(path) == "\n".join(line.removeprefix("#").removeprefix(" ") for line in expected.splitlines())


def test_each_code_of_the_spec_layer_has_a_bad_spec() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in BAD.glob("*.yaml"))
    missing = [code for code in known_codes() if code < "BTC200" and f"[{code}]" not in shown]
    assert sorted(missing) == sorted(FROM_FILES)


def test_each_code_that_is_shown_can_be_explained() -> None:
    for path in BAD.glob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("# error["):
                assert explain(line[8:14]) is not None, path.name
