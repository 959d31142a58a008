"""Confidence intervals of mean scores and of paired differences, on the standard library alone.

Knows numbers, not examples or candidates. Binary scores get Wilson intervals, their paired differences Newcombe's
method 10; graded scores, whose shape nobody knows, a t interval that allows for what few examples have not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev

from bt_compiler.engine.trace import Interval


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927). `n` 0: all of [0, 1].

    Raises ValueError where successes are not within [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(low=0.0, high=1.0, level=level)
    z = _z(level)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return Interval(low=low, high=high, level=level)


def newcombe_paired(both: int, first: int, second: int, neither: int, level: float = 0.95) -> Interval:
    """Interval of p1 - p2 for proportions of the same n examples; `first`: solved by the first alone.

    Method 10 of Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17: Wilson limits joined with a correlation that is corrected for continuity.
    No examples: all of [-1, 1]. Raises ValueError for negative counts.
    """
    if min(both, first, second, neither) < 0:
        raise ValueError("counts below 0")
    n = both + first + second + neither
    if n == 0:
        return Interval(low=-1.0, high=1.0, level=level, method="newcombe")
    p1, p2 = (both + first) / n, (both + second) / n
    one, two = wilson(both + first, n, level), wilson(both + second, n, level)
    phi = _phi_corrected(both, first, second, neither)
    down1, up1, down2, up2 = p1 - one.low, one.high - p1, p2 - two.low, two.high - p2
    low = p1 - p2 - sqrt(max(0.0, down1**2 - 2 * phi * down1 * up2 + up2**2))
    high = p1 - p2 + sqrt(max(0.0, down2**2 - 2 * phi * down2 * up1 + up1**2))
    return Interval(low=max(-1.0, low), high=min(1.0, high), level=level, method="newcombe")


def _phi_corrected(a: int, b: int, c: int, d: int) -> float:
    """Newcombe's phi: towards 0 by n/2 where it is positive, as it is where negative, 0 where it is not defined."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    cross = a * d - b * c
    corrected = max(cross - (a + b + c + d) / 2, 0.0) if cross > 0 else float(cross)
    return corrected / sqrt(product)


def adjusted_t(scores: Sequence[float], *, level: float = 0.95, bounds: tuple[float, float] = (0.0, 1.0)) -> Interval:
    """Student's t interval of a mean after one more score at either end of `bounds`, cut to `bounds`.

    For differences that are -1, 0 or 1 that is the adjusted Wald interval of Bonett & Price 2012, "Adjusted Wald
    confidence interval for a difference of binomial proportions based on paired data", Journal of Educational and
    Behavioral Statistics 37, with t for z. The two scores stand for what few examples cannot have shown, so that no
    scores, one, or n equal ones need no case of their own; they cost width where scores vary little: 0.12 instead of
    0.06 for differences with a standard deviation of 0.1 and n 50.

    Coverage at 95 %: simulated, 20,000 runs of each of 94 shapes (sparse and one-sided differences, means over seeds,
    F1, beta, 0 or 1) and n from 10 to 300, 94.4 to 100 %; exactly, at the worst share of scores at one end, n from 5
    to 500, 93.3 %. A bootstrap-t covered 82 to 93 % (200 runs each) where 2 to 10 of 50 or 100 differences are not 0,
    with ends at a bound. `tests/engine/test_statistics.py` repeats a part. Raises ValueError for a score outside
    `bounds`.
    """
    least, most = bounds
    if any(not least <= score <= most for score in scores):
        raise ValueError(f"scores outside [{least}, {most}]")
    more = [*scores, least, most]
    mean = fmean(more)
    half = _student((1 + level) / 2, len(more) - 1) * stdev(more, mean) / sqrt(len(more))
    return Interval(low=max(least, mean - half), high=min(most, mean + half), level=level, method="adjusted-t")


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t, by Cornish and Fisher's expansion (Abramowitz & Stegun 26.7.5).

    At 97.5 % it is 11 % short with one degree of freedom (no scores at all), 0.8 % with two, 0.1 % with three.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** power for power, term in enumerate(terms))


def mean_of(scores: Sequence[float]) -> float:
    """Mean score; 0 for no scores."""
    return fmean(scores) if scores else 0.0


def interval_of(scores: Sequence[float], binary: bool) -> Interval:
    """Interval of the mean of scores in [0, 1]. Raises ValueError where `binary` scores are not 0 or 1."""
    if not binary:
        return adjusted_t(scores)
    return wilson(_successes(scores), len(scores))


def paired_interval(a: Sequence[float], b: Sequence[float], binary: bool) -> Interval:
    """Interval of mean(a) - mean(b), where a[i] and b[i] are scores of the same example.

    0 inside: the data do not tell the two apart. Raises ValueError for unequal lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}")
    if not binary:
        return adjusted_t([one - two for one, two in zip(a, b, strict=True)], bounds=(-1.0, 1.0))
    both = sum(one == two == 1 for one, two in zip(a, b, strict=True))
    first, second = _successes(a) - both, _successes(b) - both
    return newcombe_paired(both, first, second, len(a) - both - first - second)


def _successes(scores: Sequence[float]) -> int:
    if any(score not in (0, 1) for score in scores):
        raise ValueError("binary scores have to be 0 or 1")
    return int(sum(scores))


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
