"""Figure 4 in small: `kill -9` at random moments of a real compile, and the same digest every time."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from kill_resume import killed, prepare, undisturbed

KILLS = 3


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    place = prepare(tmp_path, rows=12, epochs=4)
    whole = undisturbed(place)
    rng = random.Random(1)
    outcomes = [killed(place, f"killed-{number}", within=0.9 * whole.seconds, rng=rng) for number in range(KILLS)]
    assert {outcome.digest for outcome in outcomes} == {whole.digest}
    assert any(outcome.after is not None for outcome in outcomes), "no compile was killed in time"
