"""Files that are no specs: each its own code, and never another exception."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bt_compiler.errors import SpecError
from bt_compiler.spec import load_spec


def code_of(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    (item,) = caught.value.diagnostics
    return item.code


def written(folder: Path, content: bytes) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(content)
    return path


def test_missing(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nowhere.yaml") == "BTC001"


def test_below_a_file(tmp_path: Path) -> None:
    assert code_of(written(tmp_path, b"version: 1") / "spec.yaml") == "BTC001"


def test_folder_names_a_spec_in_it(tmp_path: Path) -> None:
    written(tmp_path, b"version: 1")
    with pytest.raises(SpecError, match=r"spec\.yaml") as caught:
        load_spec(tmp_path)
    assert caught.value.diagnostics[0].code == "BTC002"


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert code_of(tmp_path / "pipe") == "BTC002"


def test_device() -> None:
    assert code_of(Path("/dev/zero")) == "BTC002"


def test_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    assert code_of(tmp_path / "a.yaml") == "BTC003"


def test_name_too_long(tmp_path: Path) -> None:
    assert code_of(tmp_path / ("x" * 300)) == "BTC003"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission(tmp_path: Path) -> None:
    path = written(tmp_path, b"version: 1")
    path.chmod(0)
    assert code_of(path) == "BTC003"


def test_ten_megabytes(tmp_path: Path) -> None:
    assert code_of(written(tmp_path, b"a: b\n" * 2_000_000)) == "BTC004"


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n", "version: 1".encode("utf-16"), b"a: caf\xe9\n", b"\xff" * 100]
)
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    assert code_of(written(tmp_path, content)) == "BTC005"


@pytest.mark.parametrize("content", [b"a: \x00\n", b"\x7fELF\x01", b"a: 1\nb: \x1b[31m\n"])
def test_control_characters(tmp_path: Path, content: bytes) -> None:
    assert code_of(written(tmp_path, content)) == "BTC006"


def test_control_character_is_located(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(written(tmp_path, b"a: 1\r\nb: x\x07\n"))
    span = caught.value.diagnostics[0].span
    assert span is not None
    assert (span.line, span.column) == (2, 5)


@pytest.mark.parametrize("content", [b"", b"   \n\n", b"\xef\xbb\xbf", b"# note\n", b"---\n"])
def test_empty(tmp_path: Path, content: bytes) -> None:
    code = code_of(written(tmp_path, content))
    assert code == ("BTC021" if content.startswith(b"---") else "BTC007")


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    text = 'version: 1\r\ndata: t.csv\r\nmodules: {m: {signature: "a -> b"}}\r\nmetric: accuracy\r\n'
    spec = load_spec(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert spec.span(("metric",)).column == 9
    assert spec.document["data"] == "t.csv"


def test_hundred_thousand_brackets(tmp_path: Path) -> None:
    assert code_of(written(tmp_path, b"[" * 100_000)) == "BTC013"


def test_alias_bomb(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert code_of(written(tmp_path, "\n".join(lines).encode())) == "BTC015"


def test_one_long_line_of_words(tmp_path: Path) -> None:
    assert code_of(written(tmp_path, b"a: [" + b"x" * 1_000_000 + b"[" + b"y" * 40_000)) == "BTC012"


def test_data_in_place_of_a_spec(tmp_path: Path) -> None:
    assert code_of(written(tmp_path, b"rows:\n" + b"- {a: 1}\n" * 100_000)) == "BTC022"


def test_thousands_of_unknown_keys_are_capped(tmp_path: Path) -> None:
    path = written(tmp_path, b"".join(b"key%d: 1\n" % number for number in range(9_000)))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert 10 < len(caught.value.diagnostics) < 100
