"""The race: who is dropped when, what is never dropped, and how often a winner is lost."""

import random
from collections.abc import Sequence
from itertools import product

import pytest

from bt_compiler.optimize.racing import FIRST_ROUND, chance_to_win, race, rounds

Table = Sequence[Sequence[float]]


def raced(table: Table, error: float) -> list[tuple[float, ...]]:
    return race(
        len(table), len(table[0]), error, lambda running, start, end: [table[one][start:end] for one in running]
    )


def coins(rng: random.Random, chances: Sequence[float], count: int) -> list[list[float]]:
    return [[float(rng.random() < chance) for _ in range(count)] for chance in chances]


def test_rounds_grow_and_end_at_all_examples() -> None:
    assert rounds(100) == [16, 32, 64, 100]
    assert (rounds(16), rounds(7), rounds(0)) == ([16], [7], [])


def test_a_hopeless_candidate_meets_one_round_and_the_leader_all() -> None:
    met = raced([[0.0] * 100, [1.0] * 100], 0.05)
    assert [len(scores) for scores in met] == [FIRST_ROUND, 100]


def test_without_an_error_rate_everybody_meets_everything() -> None:
    assert raced([[0.0] * 50, [1.0] * 50], 0.0) == [(0.0,) * 50, (1.0,) * 50]


@pytest.mark.parametrize("error", [0.0, 0.05])
@pytest.mark.parametrize(
    ("limit", "lengths"),
    [(0, [16, 16, 0, 0, 0, 0]), (64, [16] * 4 + [0] * 2), (130, [16] * 6), (200, [32] * 6), (300, [50] * 6)],
)
def test_where_runs_are_limited_the_last_candidates_are_left_out_and_the_race_ends_early(
    error: float, limit: int, lengths: list[int]
) -> None:
    table = [[float(n % 2) for n in range(50)]] * 6
    spent = 0

    def score(running: Sequence[int], start: int, end: int) -> list[Sequence[float]]:
        nonlocal spent
        spent += len(running) * (end - start)
        return [table[one][start:end] for one in running]

    def goes_on(end: int, runs: int) -> bool:
        return spent + runs <= limit

    assert [len(met) for met in race(6, 50, error, score, goes_on)] == lengths


def test_equal_candidates_stay() -> None:
    scores = [float(n % 2) for n in range(200)]
    assert [len(met) for met in raced([scores] * 4, 0.05)] == [200] * 4


def test_with_an_indifference_those_that_cannot_win_by_much_are_dropped_too() -> None:
    rng = random.Random(0)
    runs = {0.0: 0, 1.0: 0}
    near = 0
    for _ in range(100):
        table = coins(rng, [0.4] * 6, 150)
        for zone in runs:
            met = race(6, 150, 0.05, lambda running, a, b, t=table: [t[one][a:b] for one in running], indifference=zone)
            runs[zone] += sum(map(len, met))
        best = max(map(sum, table))
        near += max(sum(scores) for scores in met if len(scores) == 150) >= best - (best * (1 - best / 150)) ** 0.5
    assert runs[1.0] < 0.8 * runs[0.0]
    assert near >= 90


def test_few_examples_are_one_round() -> None:
    assert [len(met) for met in raced([[1.0] * FIRST_ROUND, [0.0] * FIRST_ROUND], 0.5)] == [FIRST_ROUND] * 2


def test_what_can_no_longer_be_made_up_has_no_chance() -> None:
    assert chance_to_win([0.0] * 6, [1.0] * 6, 11) == 0.0
    assert chance_to_win([0.0] * 5, [1.0] * 5, 11) > 0.0


def test_the_predicted_chance_is_that_of_the_future() -> None:
    """Over all orders of a known population the chance at half-time agrees with how often it comes true."""
    rng = random.Random(3)
    predicted, came_true, count = 0.0, 0.0, 4000
    for _ in range(count):
        one, other = coins(rng, [rng.random()] * 2, 120)
        predicted += chance_to_win(one[:60], other[:60], 120)
        came_true += (sum(one) > sum(other)) + 0.5 * (sum(one) == sum(other))
    assert predicted / count == pytest.approx(came_true / count, abs=0.03)


@pytest.mark.parametrize(("count", "best"), list(product((60, 150), (0.4, 0.6))))
def test_the_winner_is_lost_seldom(count: int, best: float) -> None:
    rng = random.Random(count)
    lost = saved = 0
    for _ in range(200):
        table = coins(rng, [0.3, 0.3, 0.35, best], count)
        full = [sum(scores) for scores in table]
        met = raced(table, 0.05)
        winner = max(sum(scores) for scores in met if len(scores) == count)
        deviation = (max(full) * (1 - max(full) / count)) ** 0.5
        lost += winner < max(full) - deviation
        saved += sum(count - len(scores) for scores in met)
    assert lost <= 10
    assert saved > 0
