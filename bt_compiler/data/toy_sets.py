"""scikit-learn's toy sets from the files that it ships, without importing it (that costs a second).

Column names are made identifiers; the target gets the name and the class names below. Sets whose loader changes the
stored values (diabetes) or that have several targets (linnerud) are left out.
"""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bt_compiler.data.selecting import Selection
from bt_compiler.data.table import Row, Table
from bt_compiler.diagnostics import Span, did_you_mean
from bt_compiler.errors import DataError

PREFIX = "sklearn:"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ToySet:
    file: str
    features: tuple[str, ...]
    target: str
    first_line: bool = True
    """Whether the file begins with a line of counts and class names, which name the target's values."""


_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave_points",
    "symmetry",
    "fractal_dimension",
)
_SETS = {
    "iris": _ToySet(
        file="iris.csv",
        features=("sepal_length", "sepal_width", "petal_length", "petal_width"),
        target="species",
    ),
    "wine": _ToySet(
        file="wine_data.csv",
        features=(
            "alcohol",
            "malic_acid",
            "ash",
            "alcalinity_of_ash",
            "magnesium",
            "total_phenols",
            "flavanoids",
            "nonflavanoid_phenols",
            "proanthocyanins",
            "color_intensity",
            "hue",
            "od280_od315_of_diluted_wines",
            "proline",
        ),
        target="cultivar",
    ),
    "breast_cancer": _ToySet(
        file="breast_cancer.csv",
        features=(
            *(f"mean_{name}" for name in _MEASURES),
            *(f"{name}_error" for name in _MEASURES),
            *(f"worst_{name}" for name in _MEASURES),
        ),
        target="diagnosis",
    ),
    "digits": _ToySet(
        file="digits.csv.gz",
        features=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
        target="digit",
        first_line=False,
    ),
}


def read_toy_set(
    name: str, *, span: Span | None, limit: int | None = None, selection: Selection | None = None
) -> Table:
    """The rows of `sklearn:NAME` that `selection` wants, else the first `limit`, every value as text.

    Line numbers are those of the shipped file. Raises DataError: BTC321 unknown set, BTC322 scikit-learn is not
    installed.
    """
    key = name.removeprefix(PREFIX)
    toy = _SETS.get(key)
    if toy is None:
        help = did_you_mean(key, _SETS, what="toy sets")
        raise DataError.of("BTC321", f"unknown toy set `{name}`", span=span, help=help)
    lines = _file_of(toy, name, span).splitlines()
    classes = lines[0].split(",")[2:] if toy.first_line else None
    columns = (*toy.features, toy.target)
    chosen = selection or Selection(limit=limit)
    for number, cells in enumerate(csv.reader(lines), 1):
        if number == 1 and toy.first_line:
            continue
        target = str(int(float(cells[-1])))
        values = [*cells[:-1], classes[int(target)] if classes is not None else target]
        chosen.offer(Row(line=number, text=lines[number - 1], values=dict(zip(columns, values, strict=True))))
    return Table(name=name, rows=chosen.rows(), header=",".join(columns), columns=columns)


def _file_of(toy: _ToySet, name: str, span: Span | None) -> str:
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError.of(
            "BTC322",
            f"`{name}` comes with scikit-learn, which is not installed",
            span=span,
            help="`pip install scikit-learn`, or name a file",
        )
    data = (Path(found.submodule_search_locations[0]) / "datasets" / "data" / toy.file).read_bytes()
    if toy.file.endswith(".gz"):
        data = gzip.GzipFile(fileobj=io.BytesIO(data)).read()
    return data.decode("utf-8")
