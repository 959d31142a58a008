"""Races candidates over the same examples, in growing rounds; one that can hardly win any more is dropped.

After each round every candidate still in the race is compared with the leader on the examples that both have met. The
sum of the paired differences on the examples still to come is predicted from those seen (normal, with the uncertainty
of their mean, and two pseudo-examples of which each has won one, so that equal answers so far are no proof). A
candidate is dropped where the chance that it ends ahead, a tie being half of one, is below `error`; with an
`indifference`, where the chance is that it ends ahead by more than that many standard errors of the leader. Predictive
probability as a stopping rule: Lee & Liu 2008, "A predictive probability design for phase II cancer clinical trials",
Clinical Trials 5; racing candidates on shared examples: Maron & Moore 1994, "Hoeffding races"; indifference zones:
Bechhofer 1954, Annals of Mathematical Statistics 25. The winner has met every example. `error` holds for one
comparison, not for a whole race: `tests/bench/racing.py` replays recorded scores and counts.

Knows scores in [0, 1] and their order; nothing of prompts or programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, sqrt
from statistics import NormalDist

FIRST_ROUND = 16
"""Examples before the first candidate may be dropped."""
FIRST = 2
"""Candidates that a limited race begins with, to learn what one costs."""
GROWTH = 2.0
"""Examples met after a round, over those met before it."""


def rounds(total: int) -> list[int]:
    """Examples met by the end of each round, up to `total`."""
    ends = [min(FIRST_ROUND, total)] if total else []
    while ends and ends[-1] < total:
        ends.append(min(total, ceil(ends[-1] * GROWTH)))
    return ends


def race(
    count: int,
    total: int,
    error: float,
    score: Callable[[Sequence[int], int, int], Sequence[Sequence[float]]],
    goes_on: Callable[[int, int], bool] | None = None,
    indifference: float = 0.0,
) -> list[tuple[float, ...]]:
    """Scores of `count` candidates on the first of `total` examples: all of them, or fewer where one was dropped.

    `score(candidates, start, end)` gives the scores of each of these candidates on examples start to end. Ties for the
    lead go to the earliest candidate. `error` 0: nobody is dropped.

    `goes_on(end, runs)`: whether so many runs more, up to example `end`, may be had; None: all of them, and without an
    `error` there is one round. The first round has the first two candidates in any case and then those in order that
    may be had, the last ones meet nothing; where a later round is refused, the race ends for those still in it.
    """
    met: list[list[float]] = [[] for _ in range(count)]

    def meet(those: Sequence[int], end: int) -> None:
        if those:
            for candidate, found in zip(those, score(those, len(met[those[0]]), end), strict=True):
                met[candidate].extend(found)

    running = list(range(count))
    for number, end in enumerate(rounds(total) if error > 0 or goes_on is not None else [total]):
        if goes_on is None:
            meet(running, end)
        elif number == 0:
            meet(running[:FIRST], end)
            while len(running) > FIRST and not goes_on(end, (len(running) - FIRST) * end):
                running.pop()
            meet(running[FIRST:], end)
        elif goes_on(end, sum(end - len(met[candidate]) for candidate in running)):
            meet(running, end)
        else:
            break
        if end < total:
            lead = max(running, key=lambda candidate: (sum(met[candidate]), -candidate))
            running = [
                candidate
                for candidate in running
                if candidate == lead or chance_to_win(met[candidate], met[lead], total, indifference) >= error
            ]
    return [tuple(scores) for scores in met]


def chance_to_win(scores: Sequence[float], lead: Sequence[float], total: int, indifference: float = 0.0) -> float:
    """Chance that `scores` ends ahead of `lead`, a tie being half of one, once both have met all `total` examples: by
    more than `indifference` standard errors of the leader's mean.

    Both are scores of the same examples, fewer than `total` of them.
    """
    differences = [one - other for one, other in zip(scores, lead, strict=True)]
    seen, left, ahead = len(differences), total - len(differences), sum(differences)
    wanted = indifference * sqrt(total) * _deviation(lead) if indifference else 0.0
    if ahead + left < wanted:
        return 0.0
    mean = ahead / (seen + 2)
    variance = (sum(difference * difference for difference in differences) + 2) / (seen + 2) - mean * mean
    spread = sqrt(left * variance * (1 + left / (seen + 2)))
    return 1 - NormalDist(ahead + left * mean, spread).cdf(wanted)


def _deviation(scores: Sequence[float]) -> float:
    """Standard deviation, with two pseudo-examples as above: one of score 1, one of 0."""
    mean = (sum(scores) + 1) / (len(scores) + 2)
    return sqrt((sum(score * score for score in scores) + 1) / (len(scores) + 2) - mean * mean)
