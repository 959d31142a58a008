"""A small run of `mutate_specs`, and that its starting points are good specs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mutate_specs import Mutant, check_mutant, lay_out, mutants, starting_points

OUT_OF_REACH = {"BTC327", "BTC373"}
"""The paper's specs name data sets of the hub, which no test asks for, and a corpus that is not in the repository."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mutants")
    lay_out(path)
    return path


def test_what_is_mutated_is_good(folder: Path) -> None:
    for text in starting_points():
        outcome = check_mutant(Mutant(text, (), "as it is"), folder)
        assert outcome.crash is None
        assert set(outcome.codes) <= OUT_OF_REACH, text


def test_mutants_end_well_or_with_known_codes(folder: Path) -> None:
    codes: Counter[str] = Counter()
    for mutant in mutants(starting_points(), 250, seed=7):
        outcome = check_mutant(mutant, folder)
        assert outcome.crash is None, f"{mutant.how} {mutant.overrides}\n{mutant.text}\n{outcome.crash}"
        codes.update(outcome.codes)
    assert len(codes) > 20, "the mutants reach too little"
