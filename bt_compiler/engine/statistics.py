"""Confidence intervals of mean scores and of paired differences, on the standard library alone.

Knows numbers, not examples or candidates. Binary scores get Wilson intervals, their paired differences Newcombe's
method 10; graded scores a studentised bootstrap with a seed, so that equal scores give equal intervals everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from random import Random
from statistics import NormalDist, fmean

from bt_compiler.engine.trace import Interval

RESAMPLES = 2000
"""Bootstrap resamples: the 2.5 % quantile rests on 50 of them."""


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927). `n` 0: all of [0, 1].

    `successes` may be a fraction: scores within [0, 1] vary at most as much as a coin of the same mean, so that the
    interval is then on the safe side. Raises ValueError where successes are not within [0, n].
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


def bootstrap_t(
    scores: Sequence[float],
    seed: int = 0,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Studentised bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 12), cut to `bounds`.

    Where the scores do not vary (one score, or all equal) there is nothing to resample, and the answer is the Wilson
    interval of the same mean over `bounds`. Raises ValueError for a score outside `bounds`.
    """
    least, most = bounds
    if any(not least <= score <= most for score in scores):
        raise ValueError(f"scores outside [{least}, {most}]")
    n = len(scores)
    if n < 2 or min(scores) == max(scores):
        share = sum((score - least) / (most - least) for score in scores)
        unit = wilson(min(max(share, 0.0), float(n)), n, level)
        return Interval(
            low=least + unit.low * (most - least), high=least + unit.high * (most - least), level=level, method="wilson"
        )
    mean, error = _mean_and_error([(score, score * score) for score in scores])
    ratios = sorted(_ratios(scores, mean, seed, resamples))
    tail = (1 - level) / 2
    low = mean - _quantile(ratios, 1 - tail) * error
    high = mean - _quantile(ratios, tail) * error
    return Interval(low=max(least, low), high=min(most, high), level=level, method="bootstrap-t")


def _ratios(scores: Sequence[float], mean: float, seed: int, resamples: int) -> list[float]:
    """Student's t of the resamples; infinite where a resample does not vary but lies off the mean."""
    random = Random(seed)
    pairs = [(score, score * score) for score in scores]
    found = []
    for _ in range(resamples):
        drawn, error = _mean_and_error(random.choices(pairs, k=len(pairs)))
        offset = drawn - mean
        if error > 0:
            found.append(offset / error)
        else:
            found.append(0.0 if abs(offset) < 1e-12 else inf if offset > 0 else -inf)
    return found


def _mean_and_error(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and its standard error, from (score, score squared); 0 where rounding leaves no variance."""
    n = len(pairs)
    mean = sum([pair[0] for pair in pairs]) / n
    variance = (sum([pair[1] for pair in pairs]) / n - mean * mean) * n / (n - 1)
    return mean, sqrt(variance / n) if variance > 1e-12 else 0.0


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The order statistic that leaves `share` at or below it: no interpolation, which infinities forbid."""
    return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) + 1)) - 1))]


def mean_of(scores: Sequence[float]) -> float:
    """Mean score; 0 for no scores."""
    return fmean(scores) if scores else 0.0


def interval_of(scores: Sequence[float], binary: bool, seed: int = 0) -> Interval:
    """Interval of the mean of scores in [0, 1]. Raises ValueError where `binary` scores are not 0 or 1."""
    if not binary:
        return bootstrap_t(scores, seed)
    return wilson(_successes(scores), len(scores))


def paired_interval(a: Sequence[float], b: Sequence[float], binary: bool, seed: int = 0) -> Interval:
    """Interval of mean(a) - mean(b), where a[i] and b[i] are scores of the same example.

    0 inside: the data do not tell the two apart. Raises ValueError for unequal lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}")
    if not binary:
        return bootstrap_t([one - two for one, two in zip(a, b, strict=True)], seed, bounds=(-1.0, 1.0))
    both = sum(one == two == 1 for one, two in zip(a, b, strict=True))
    first, second = _successes(a) - both, _successes(b) - both
    return newcombe_paired(both, first, second, len(a) - both - first - second)


def _successes(scores: Sequence[float]) -> int:
    if any(score not in (0, 1) for score in scores):
        raise ValueError("binary scores have to be 0 or 1")
    return int(sum(scores))


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
