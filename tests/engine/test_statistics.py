from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose
from random import Random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_compiler.engine.statistics import adjusted_t, interval_of, newcombe_paired, paired_interval, wilson
from bt_compiler.engine.trace import Interval


def rounded(interval: Interval, digits: int = 4) -> tuple[float, float]:
    return round(interval.low, digits), round(interval.high, digits)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_limits(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert rounded(wilson(successes, n)) == expected


def test_wilson_at_the_edges() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert wilson(5, 5).high == 1.0 and wilson(5, 5).low == pytest.approx(1 - wilson(0, 5).high)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # Fagerland, Lydersen & Laake 2014 (airway reactivity): -0.507 to -0.026
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # the same authors' book, table 8 (complete response): -0.1186 to -0.0046
        ((59, 6, 16, 80), (-0.1186, -0.0046)),
    ],
)
def test_newcombe_gives_the_published_limits(table: tuple[int, int, int, int], expected: tuple[float, float]) -> None:
    digits = max(len(str(abs(limit))) - 2 for limit in expected)
    assert rounded(newcombe_paired(*table), digits) == expected


@given(st.tuples(*[st.integers(0, 60)] * 4))
def test_newcombe_holds_the_difference_and_turns_with_its_arms(table: tuple[int, int, int, int]) -> None:
    both, first, second, neither = table
    interval = newcombe_paired(both, first, second, neither)
    n = sum(table)
    difference = (first - second) / n if n else 0.0
    assert -1 <= interval.low <= difference <= interval.high <= 1
    turned = newcombe_paired(both, second, first, neither)
    assert isclose(turned.low, -interval.high, abs_tol=1e-12) and isclose(turned.high, -interval.low, abs_tol=1e-12)


def coverage(
    draw: Callable[[Random], Sequence[float]], of: Callable[[Sequence[float]], Interval], truth: float, runs: int
) -> float:
    random = Random(5)
    intervals = [of(draw(random)) for _ in range(runs)]
    return sum(interval.low <= truth <= interval.high for interval in intervals) / runs


def test_newcombe_covers_the_truth() -> None:
    cells, shares = (0, 1, 2, 3), (0.45, 0.25, 0.10, 0.20)  # both, first, second, neither: difference 0.15

    def draw(random: Random) -> list[float]:
        return [float(cell) for cell in random.choices(cells, shares, k=50)]

    def interval(drawn: Sequence[float]) -> Interval:
        return newcombe_paired(*(list(drawn).count(cell) for cell in cells))

    assert 0.93 <= coverage(draw, interval, 0.15, 2000) <= 0.98


def sparse(share: float) -> Callable[[Random], Callable[[], float]]:
    """Differences of which `share` are above 0, as many below, and the others 0."""

    def of(random: Random) -> Callable[[], float]:
        return lambda: random.choices((1, -1, 0), (share, share, 1 - 2 * share))[0] * random.choice((1 / 3, 2 / 3, 1))

    return of


def f1(random: Random) -> Callable[[], float]:
    return lambda: random.choices((0.0, 0.5, 2 / 3, 1.0), (0.4, 0.2, 0.1, 0.3))[0]


SHAPES: dict[str, tuple[Callable[[Random], Callable[[], float]], float, tuple[float, float]]] = {
    "differences, 1 % either way": (sparse(0.01), 0.0, (-1, 1)),
    "differences, 2 % either way": (sparse(0.02), 0.0, (-1, 1)),
    "differences, 4 % either way": (sparse(0.04), 0.0, (-1, 1)),
    "differences, 20 % either way": (sparse(0.2), 0.0, (-1, 1)),
    "differences, 6 % one way": (lambda random: lambda: -float(random.random() < 0.06), -0.06, (-1, 1)),
    "0 or 1, 1 in 50": (lambda random: lambda: float(random.random() < 0.02), 0.02, (0, 1)),
    "0 or 1, half": (lambda random: lambda: float(random.random() < 0.5), 0.5, (0, 1)),
    "leaning to 0": (lambda random: lambda: random.betavariate(0.8, 3.2), 0.2, (0, 1)),
    "F1": (f1, 0.2 / 2 + 0.2 / 3 + 0.3, (0, 1)),
}


@pytest.mark.parametrize("n", [12, 50, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_adjusted_t_covers_the_mean(shape: str, n: int) -> None:
    one, truth, bounds = SHAPES[shape]

    def draw(random: Random) -> list[float]:
        score = one(random)
        return [score() for _ in range(n)]

    assert coverage(draw, lambda scores: adjusted_t(scores, bounds=bounds), truth, 400) >= 0.92


def test_a_few_differences_of_many_neither_exclude_0_nor_reach_a_bound() -> None:
    few = paired_interval([2 / 3, 1 / 3, 1 / 3] + [0.0] * 47, [0.0] * 50, False)
    assert rounded(few) == (-0.0376, 0.0889)
    hit = interval_of([0.8] + [0.0] * 49, False)
    assert hit.low == 0.0 and 0.05 < hit.high < 0.12
    tiny = interval_of([0.1 + 0.2, 0.3, 0.3, 0.3], False)  # the first is 0.30000000000000004
    assert rounded(tiny) == rounded(interval_of([0.3] * 4, False))


def test_adjusted_t_comes_to_the_interval_of_the_mean_where_there_are_many_scores() -> None:
    scores = [0.3, 0.4, 0.5, 0.6, 0.7] * 2000
    interval = adjusted_t(scores)
    half = NormalDist().inv_cdf(0.975) * (0.02 / len(scores)) ** 0.5
    assert interval.method == "adjusted-t"
    assert interval.low == pytest.approx(0.5 - half, abs=1e-5)
    assert interval.high == pytest.approx(0.5 + half, abs=1e-5)


def test_adjusted_t_is_bonett_and_prices_interval_with_t() -> None:
    # 12 solved by the first alone, 5 by the second: p = (13 - 6) / 52, its error by their formula, t of 51 is 2.00758
    interval = adjusted_t([1.0] * 12 + [-1.0] * 5 + [0.0] * 33, bounds=(-1.0, 1.0))
    difference = 7 / 52
    error = ((19 / 52 - difference**2) / 52 * 52 / 51) ** 0.5
    assert rounded(interval) == (round(difference - 2.00758 * error, 4), round(difference + 2.00758 * error, 4))


def test_scores_that_do_not_vary_are_no_certainty() -> None:
    assert rounded(adjusted_t([])) == (0.0, 1.0)
    every = adjusted_t([1.0] * 10)
    assert 0.6 < every.low < 0.8 and every.high == 1.0
    one = adjusted_t([0.3])
    assert one.low < 0.3 < one.high
    with pytest.raises(ValueError, match="outside"):
        adjusted_t([0.5, 1.5])


@given(st.lists(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0]), max_size=12))
def test_every_interval_holds_the_mean_within_the_bounds(scores: list[float]) -> None:
    interval = adjusted_t(scores)
    mean = sum(scores) / len(scores) if scores else 0.5
    assert 0 <= interval.low <= mean + 1e-9 and mean - 1e-9 <= interval.high <= 1


def test_interval_of_chooses_by_kind_of_score() -> None:
    assert interval_of([1.0, 0.0, 1.0], True) == wilson(2, 3)
    assert interval_of([1.0, 0.5, 0.25], False).method == "adjusted-t"
    with pytest.raises(ValueError, match="0 or 1"):
        interval_of([0.5], True)


def test_paired_interval_is_of_the_first_less_the_second() -> None:
    a = [1.0] * 30 + [0.0] * 20
    b = [1.0] * 10 + [0.0] * 35 + [1.0] * 5
    assert paired_interval(a, b, True) == newcombe_paired(10, 20, 5, 15)
    assert paired_interval(a, b, True).low > 0
    one, two = [0.9, 0.8, 0.7, 0.85, 0.6] * 5, [0.1, 0.2, 0.3, 0.15, 0.4] * 5
    graded = paired_interval(one, two, False)
    assert 0 < graded.low < 0.54 < graded.high <= 1
    turned = paired_interval(two, one, False)
    assert turned.low < -0.54 < turned.high < 0
    assert paired_interval([0.5, 0.5], [0.5, 0.5], False).low < 0  # no difference seen is not no difference
    with pytest.raises(ValueError, match="2 scores against 1"):
        paired_interval([1.0, 1.0], [1.0], True)
