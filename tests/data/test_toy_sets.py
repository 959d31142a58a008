from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from bt_compiler.data import toy_sets
from bt_compiler.data.table import Table
from bt_compiler.errors import DataError


def read(name: str, limit: int | None = None) -> Table:
    return toy_sets.read_toy_set(f"sklearn:{name}", span=None, limit=limit)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits"])
def test_values_are_those_of_sklearn(name: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    loaded = getattr(datasets, f"load_{name}")()
    table = read(name)
    *features, target = table.columns
    assert len(table.rows) == len(loaded.data)
    for row, values, label in zip(table.rows, loaded.data, loaded.target, strict=True):
        assert [float(row.values[column]) for column in features] == list(values)
        assert row.values[target] == str(loaded.target_names[label])


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_columns_are_those_of_sklearn_as_identifiers(name: str) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    loaded = getattr(datasets, f"load_{name}")()
    names = [str(feature).replace(" ", "_").replace("/", "_") for feature in loaded.feature_names]
    assert list(read(name).columns[:-1]) == names


def test_iris_has_the_columns_of_the_example_spec() -> None:
    assert read("iris").columns == ("sepal_length", "sepal_width", "petal_length", "petal_width", "species")
    assert {row.values["species"] for row in read("iris").rows} == {"setosa", "versicolor", "virginica"}


def test_limit_takes_the_first_rows() -> None:
    assert [row.line for row in read("iris", limit=2).rows] == [2, 3]
    assert [row.line for row in read("digits", limit=2).rows] == [1, 2]


def test_without_sklearn_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> ModuleSpec | None:
        assert name == "sklearn"
        return None

    monkeypatch.setattr(toy_sets, "find_spec", nothing)
    with pytest.raises(DataError) as caught:
        read("iris")
    assert caught.value.diagnostics[0].code == "BTC322"
    assert "pip install scikit-learn" in (caught.value.diagnostics[0].help or "")
