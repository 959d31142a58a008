from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.diagnostics import render
from bt_compiler.errors import SpecError
from bt_compiler.spec import Spec, build_sections, load_spec

BASE = """\
version: 1
name: base
model: {id: small, dtype: float32}
data: data/all.csv
modules:
  classify:
    signature:
      instructions: Sort it.
      inputs: {text: str}
      outputs: {category: {enum: [a, b]}}
metric: accuracy
optimize:
  strategy: [prompts, weights, prompts]
  weights: {r: 8, epochs: 2, patience: 1}
"""


def spec_of(tmp_path: Path, child: str = "extends: base/spec.yaml\n", *overrides: str, base: str = BASE) -> Spec:
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "spec.yaml").write_text(base, encoding="utf-8")
    (tmp_path / "child.yaml").write_text(child, encoding="utf-8")
    return load_spec(tmp_path / "child.yaml", overrides=overrides)


def test_maps_merge_lists_replace_null_deletes(tmp_path: Path) -> None:
    child = "extends: base/spec.yaml\noptimize:\n  strategy: [prompts]\n  weights: {r: 16, patience: null}\n"
    spec = spec_of(tmp_path, child)
    assert spec.get(("optimize",)) == {"strategy": ["prompts"], "weights": {"r": 16, "epochs": 2}}
    assert "extends" not in spec.document


def test_null_on_a_misspelt_key_is_found(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"BTC102.*`metrc`"):
        spec_of(tmp_path, "extends: base/spec.yaml\nmetrc: null\n")
    with pytest.raises(SpecError, match=r"BTC102.*`stratfy`"):
        spec_of(tmp_path, "extends: base/spec.yaml\ndata: {stratfy: null}\n")


def test_a_column_is_asked_for_null(tmp_path: Path) -> None:
    base = BASE.replace("data: data/all.csv", "data: {path: all.csv, where: {level: hard}}")
    spec = spec_of(tmp_path, "extends: base/spec.yaml\ndata: {where: {votes: null}}\n", base=base)
    assert spec.get(("data", "where")) == {"level": "hard", "votes": None}


def test_name_is_not_inherited(tmp_path: Path) -> None:
    assert build_sections(spec_of(tmp_path)).name == "child"


def test_each_value_knows_its_file(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "extends: base/spec.yaml\noptimize: {weights: {r: 16}}\n", "optimize.weights.epochs=9")
    places = {key: spec.span(("optimize", "weights", key)).source.name for key in ("r", "epochs", "patience")}
    assert places["r"].endswith("child.yaml")
    assert places["epochs"] == "--set #1"
    assert places["patience"].endswith("base/spec.yaml")
    assert [source.name for source in spec.sources][2] == "--set #1"
    parent = spec.span(("metric",)).source.parent
    assert parent is not None
    assert parent.name.endswith("child.yaml")


def test_paths_are_relative_to_the_file_that_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    inherited = build_sections(spec_of(tmp_path)).data.path
    own = build_sections(spec_of(tmp_path, "extends: base/spec.yaml\ndata: {path: own.csv}\n")).data.path
    given_ = build_sections(spec_of(tmp_path, "extends: base/spec.yaml\n", "data.path=../given.csv")).data.path
    assert inherited is not None
    assert inherited.path == str(tmp_path / "base" / "data" / "all.csv")
    assert own is not None
    assert own.path == str(tmp_path / "own.csv")
    assert given_ is not None
    assert given_.path == str(tmp_path / "given.csv")


def test_a_file_behind_a_link_is_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    rest = 'version: 1\nmodules: {m: {signature: "text -> kind"}}\nmetric: accuracy\n'
    (tmp_path / "real" / "base.yaml").write_text(f"data: meant.csv\n{rest}")
    (tmp_path / "base.yaml").write_text(f"data: another.csv\n{rest}")
    (tmp_path / "real" / "inner" / "spec.yaml").write_text("extends: ../base.yaml\n")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    assert load_spec(tmp_path / "link" / "spec.yaml").get(("data",)) == "meant.csv"


def test_a_text_becomes_its_long_form_where_a_key_of_it_is_set(tmp_path: Path) -> None:
    base = BASE.replace("data: data/all.csv", "data: {train: t.csv, dev: d.csv}").replace(
        "{id: small, dtype: float32}", "small"
    )
    spec = spec_of(
        tmp_path, "extends: base/spec.yaml\ndata: {dev: {limit: 3}}\n", "data.train.path=x.csv", "model.id=other",
        "model.dtype=bfloat16", "metric.output=category", base=base,
    )  # fmt: skip
    assert spec.get(("data",)) == {"train": {"path": "x.csv"}, "dev": {"path": "d.csv", "limit": 3}}
    assert spec.get(("model",)) == {"id": "other", "dtype": "bfloat16"}
    assert spec.get(("metric",)) == {"kind": "accuracy", "output": "category"}
    sections = build_sections(spec)
    assert sections.data.train is not None
    assert sections.data.train.path == str(Path.cwd() / "x.csv")
    assert sections.data.dev is not None
    assert sections.data.dev.path == str(tmp_path / "base" / "d.csv")


def test_a_text_replaces_a_map(tmp_path: Path) -> None:
    assert spec_of(tmp_path, "extends: base/spec.yaml\nmodel: other\n").get(("model",)) == "other"
    assert spec_of(tmp_path, "extends: base/spec.yaml\n", "model=other").get(("model",)) == "other"


def test_a_default_can_be_refined(tmp_path: Path) -> None:
    base = BASE.replace("model: {id: small, dtype: float32}\n", "")
    model = build_sections(spec_of(tmp_path, "extends: base/spec.yaml\n", "model.dtype=float32", base=base)).models[0]
    assert (model.id, model.dtype) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "float32")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("no", "no"),
        ('"3"', "3"),
        ("Answer in one word: yes", "Answer in one word: yes"),
        ("# not a comment", "# not a comment"),
        ("a=b", "a=b"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        (" 3 ", 3),
        ("| not a block", "| not a block"),
    ],
)
def test_values_of_set(tmp_path: Path, written: str, value: Any) -> None:
    (tmp_path / "spec.yaml").write_text(BASE, encoding="utf-8")
    try:
        found = load_spec(tmp_path / "spec.yaml", overrides=[f"modules.classify.signature.instructions={written}"])
    except SpecError as error:
        (item,) = error.diagnostics
        assert item.code == "BTC104"
        assert not isinstance(value, str)
    else:
        assert found.get(("modules", "classify", "signature", "instructions")) == value


def test_set_in_a_list_and_null(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "extends: base/spec.yaml\n", "optimize.strategy.1=prompts", "optimize.weights.r=null")
    assert spec.get(("optimize", "strategy")) == ["prompts", "prompts", "prompts"]
    assert "r" not in spec.get(("optimize", "weights"))


def test_later_sets_win(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "extends: base/spec.yaml\n", "optimize.weights.r=1", "optimize.weights={r: 2}")
    assert spec.get(("optimize", "weights")) == {"r": 2, "epochs": 2, "patience": 1}


def test_several_levels(tmp_path: Path) -> None:
    for level in range(1, 6):
        text = f"extends: l{level - 1}.yaml\noptimize: {{weights: {{r: {level}}}}}\n"
        (tmp_path / f"l{level}.yaml").write_text(text if level > 1 else BASE, encoding="utf-8")
    spec = load_spec(tmp_path / "l5.yaml")
    assert spec.get(("optimize", "weights")) == {"r": 5, "epochs": 2, "patience": 1}
    assert len(spec.sources) == 5


def test_a_finding_says_who_extends_whom(tmp_path: Path) -> None:
    for name, text in (("top", "extends: mid.yaml\n"), ("mid", "extends: base.yaml\n"), ("base", "version: [\n")):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "top.yaml")
    said = render(caught.value.diagnostics).replace(f"{tmp_path}/", "")
    assert "`base.yaml` is extended by `mid.yaml`" in said
    assert "`mid.yaml` is extended by `top.yaml`" in said


def test_a_chain_without_end(tmp_path: Path) -> None:
    for level in range(20):
        (tmp_path / f"l{level}.yaml").write_text(f"extends: l{level + 1}.yaml\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "l0.yaml")
    assert caught.value.diagnostics[0].code == "BTC031"


def take_or_refuse(overrides: list[str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spec.yaml"
        path.write_text(BASE, encoding="utf-8")
        try:
            build_sections(load_spec(path, overrides=overrides))
        except SpecError as error:
            assert error.diagnostics


@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_set_is_taken_or_refused(overrides: list[str]) -> None:
    take_or_refuse(overrides)


@given(
    st.sampled_from(["data", "model", "metric", "optimize.strategy", "modules.classify.signature.inputs"]),
    st.text(max_size=30),
)
def test_any_value_of_set_is_taken_or_refused(name: str, value: str) -> None:
    take_or_refuse([f"{name}={value}"])
