from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_compiler.data.files import read_file
from bt_compiler.data.rows import Wanted, examples_of
from bt_compiler.data.table import Table
from bt_compiler.errors import DataError
from bt_compiler.spec import Field, Type


def table(path: Path, text: str | bytes, limit: int | None = None) -> Table:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_file(path, span=None, limit=limit)


def code_of(path: Path, text: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        table(path, text)
    return caught.value.diagnostics[0].code


def test_csv_with_a_byte_order_mark_quoted_newlines_and_any_line_ends(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        text = f'\ufefftext, label{end}"two{end}lines, ""quoted""",a{end}{end}last,b{end}'
        found = table(tmp_path / "a.csv", text)
        assert found.columns == ("text", "label")
        assert [(row.line, row.values) for row in found.rows] == [
            (2, {"text": f'two{end}lines, "quoted"', "label": "a"}),
            (5, {"text": "last", "label": "b"}),
        ]
        assert found.span(found.rows[0]).source.line(2) == '"two'


def test_csv_columns_without_a_name_are_none(tmp_path: Path) -> None:
    found = table(tmp_path / "a.csv", ",text,label, ,\n0,x,a,,\n1,y,b,,note\n,,,,\n")
    assert found.columns == ("text", "label")
    assert [row.values for row in found.rows] == [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]


def test_jsonl_skips_blank_lines_and_keeps_their_numbers(tmp_path: Path) -> None:
    found = table(tmp_path / "a.jsonl", '\ufeff{"a": 1}\r\n\n\ufeff{"a": "x\\u2028y", "b": null}')
    assert [(row.line, row.values) for row in found.rows] == [(1, {"a": 1}), (3, {"a": "x\u2028y", "b": None})]
    assert found.columns == ("a", "b")


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    assert len(table(tmp_path / "a.jsonl", '{"a": "x\u2028y\u0085z"}\n{"a": "b"}\n').rows) == 2
    assert [row.line for row in table(tmp_path / "a.csv", "a\nx\u2028y\x0cz\nb\n").rows] == [2, 3]


def test_limit_stops_before_what_is_broken_below(tmp_path: Path) -> None:
    assert len(table(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\nbroken\n', limit=2).rows) == 2


def test_what_a_name_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / ("x" * 300 + ".csv"), span=None)
    assert caught.value.diagnostics[0].code in ("BTC301", "BTC304")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    path.chmod(0)
    with pytest.raises(DataError) as caught:
        read_file(path, span=None)
    assert caught.value.diagnostics[0].code == "BTC304"


def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")

    def refused(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError) as caught:
        read_file(path, span=None)
    assert caught.value.diagnostics[0].code == "BTC304"
    assert caught.value.diagnostics[0].message.endswith("cannot be read: permission denied")


def test_a_file_that_is_gone_between_two_looks_is_missing(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "dev.jsonl", span=None)
    assert caught.value.diagnostics[0].code == "BTC301"
    assert "`train.jsonl`" in (caught.value.diagnostics[0].help or "")


@settings(max_examples=200)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_bytes_are_rows_or_a_diagnostic(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    try:
        found = table(path, data)
    except DataError as error:
        assert all(item.code.startswith("BTC30") for item in error.diagnostics)
    else:
        assert found.rows
        assert all(found.span(row).source.line(row.line) is not None for row in found.rows if row.text)


@settings(max_examples=200)
@given(text=st.text(alphabet='a1,"\n\r ', max_size=60))
def test_any_csv_text_is_rows_or_a_diagnostic(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.csv"
    try:
        found = table(path, text)
    except DataError as error:
        assert {item.code for item in error.diagnostics} <= {"BTC306", "BTC308"}
    else:
        assert all(set(row.values) == set(found.columns) for row in found.rows)


def test_code_of_each_broken_shape(tmp_path: Path) -> None:
    deep = "[" * 100_000
    assert code_of(tmp_path / "a.jsonl", f'{{"a": {deep}}}') == "BTC307"
    assert code_of(tmp_path / "a.jsonl", f'{{"a": {"9" * 5000}}}') == "BTC307"
    assert code_of(tmp_path / "a.jsonl", b'{"a": "\xff"}') == "BTC305"
    assert code_of(tmp_path / "a.csv", "a,b\n" + '"' + "x" * 200_000 + ",b") == "BTC308"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'{{"a": {"9" * 5000}}}', "a number has too many digits"),
        ('{"a": "x\ty"}', "invalid control character"),
        ('{"a": "x', "unterminated string"),
    ],
)
def test_what_json_says_is_put_for_people(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DataError) as caught:
        table(tmp_path / "a.jsonl", text)
    assert caught.value.diagnostics[0].message == f"line 1 is not JSON: {why}"


def test_a_csv_of_nothing_has_no_header(tmp_path: Path) -> None:
    for text, what in (("", "no rows"), ("a,b\n", "no rows below its header line")):
        with pytest.raises(DataError) as caught:
            table(tmp_path / "a.csv", text)
        assert caught.value.diagnostics[0].message.endswith(f"a.csv` has {what}")


def test_a_note_to_excel_is_no_header(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        table(tmp_path / "a.csv", "sep=,\ntext,kind\nx,spam\n")
    (item,) = caught.value.diagnostics
    assert (item.code, item.message) == ("BTC308", "`sep=` is a note to Excel, no header")


@pytest.mark.parametrize(("sign", "name"), [(";", "`;`"), ("\t", "tabs")])
def test_a_csv_without_commas_is_told_so(tmp_path: Path, sign: str, name: str) -> None:
    found = table(tmp_path / "a.csv", f"text{sign}kind\nx{sign}spam\n")
    text, kind = (Field(name=name, type=Type(kind="str")) for name in ("text", "kind"))
    with pytest.raises(DataError) as caught:
        examples_of(found, Wanted(inputs=(text,), labels=(kind,), columns={}))
    help = f"its cells are parted by {name}: save it with commas"
    assert [(item.code, item.help) for item in caught.value.diagnostics] == [("BTC310", help)] * 2
    with pytest.raises(DataError) as caught:
        table(tmp_path / "a.csv", f"text{sign}kind\nx, y{sign}spam\n")
    assert [(item.code, item.help) for item in caught.value.diagnostics] == [("BTC308", help)]


def test_the_path_of_an_option_is_relative_to_the_working_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / "a.csv", span=None)
    assert (caught.value.diagnostics[0].help or "").endswith("paths are relative to the working folder")


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    (row,) = table(tmp_path / "a.csv", "a,b\n" + "x" * 200_000 + ",b").rows
    assert row.values == {"a": "x" * 200_000, "b": "b"}
