"""What a compile may spend: minutes, tokens or money, and whether the next piece of work still fits.

The strategy asks before each step and each round of a race; a step or candidate that no longer fits is left out, a race
ends with the best so far, and enough is kept back to score what ships. Cost is estimated from the runs of the program
so far, the dearest of them, as if nothing had been in a cache. Every answer is kept in the journal, so that a compile
that is killed and resumed decides as before; time spent before a resume is counted on from the last answer. Another
limit asks anew and reuses all that was done.

Knows amounts and a journal; nothing of programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Literal, Protocol

from bt_compiler.canonical import digest
from bt_compiler.errors import CompileError, UsageError
from bt_compiler.optimize.accounts import Account
from bt_compiler.optimize.journal import StepJournal
from bt_compiler.spec.sections import Price

Unit = Literal["minutes", "tokens", "money"]
_UNITS: dict[str, tuple[Unit, float]] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ("minutes", 1 / 60)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), ("minutes", 1.0)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("minutes", 60.0)),
    **dict.fromkeys(("d", "day", "days"), ("minutes", 1440.0)),
    "tokens": ("tokens", 1.0),
    "ktokens": ("tokens", 1e3),
    "mtokens": ("tokens", 1e6),
}
_CURRENCIES = frozenset({"ars", "hrk", "mxn", "mzn", "sek", "svc"})
"""Those that are a slip away from a unit of time."""
_TELLING = 16
"""Calls from which the time of a call is learnt, where others of the same run were cached: a few alone take longer."""
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*(?:\s*tokens)?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The most that may be spent."""

    amount: float
    unit: Unit
    text: str
    """As the user wrote it."""


def parse_limit(text: str) -> Limit:
    """`30m`, `1h30m`, `90s`, `500k tokens`, or `2.5 usd` in the currency of the spec's prices.

    Raises UsageError (BTC465) for anything else.
    """
    parts = _parts(text)
    known = [(number * _UNITS[unit][1], _UNITS[unit][0]) for number, unit in parts if unit in _UNITS]
    amount, units = sum(number for number, _ in known), {unit for _, unit in known}
    if len(known) == len(parts) and amount > 0 and (units == {"minutes"} or len(parts) == 1):
        return Limit(amount=amount, unit=units.pop(), text=text.strip())
    meant = _meant(parts[0][1]) if len(parts) == 1 else None
    if len(parts) == 1 and len(parts[0][1]) == 3 and parts[0][0] > 0 and meant is None:
        return Limit(amount=parts[0][0], unit="money", text=text.strip())
    ways = "write minutes or hours (`30m`, `1h30m`), tokens (`500k tokens`) or money (`2.5 usd`)"
    raise UsageError.of(
        "BTC465",
        f"`{text}` is no budget",
        help=ways if meant is None else f"did you mean `{parts[0][0]:g} {meant}`?",
    )


def _parts(text: str) -> list[tuple[float, str]]:
    """Numbers with their units, one after another; none where anything else stands there."""
    found, at = [], 0
    while at < len(text):
        part = _AMOUNT.match(text, at)
        if part is None:
            return []
        found.append((float(part.group(1)), "".join(part.group(2).lower().split())))
        at = part.end()
    return found


def _meant(unit: str) -> str | None:
    """The unit of time that three letters stand for by a slip: a letter that is another, or two in another order, or
    one that is missing.
    """
    if len(unit) != 3 or unit in _CURRENCIES or unit in _UNITS:
        return None
    for known in _UNITS:
        wrong = sum(one != other for one, other in zip(unit, known, strict=False))
        slips = wrong == 1 or (wrong == 2 and sorted(unit) == sorted(known))
        missing = any(unit == known[:place] + known[place + 1 :] for place in range(len(known)))
        if missing or (slips and len(known) == 3):
            return known
    return None


class Budget(Protocol):
    """Whether work still fits."""

    @property
    def limited(self) -> bool:
        """Whether there is any work that would not."""
        ...

    def measured(self, examples: int) -> AbstractContextManager[None]:
        """Learns what an example costs from the block, which runs the program on `examples` of them."""
        ...

    def dearer(self, factor: float) -> None:
        """Is told that what is to come costs so many times the mean of what was measured last."""
        ...

    def expects(self, tokens: Mapping[str, float]) -> None:
        """Is told how many more prompt tokens, by model, an example may take than at the first measurement, where a
        step shows as many demos as it may.
        """
        ...

    def begin(self, step: str, *, steps_left: int, examples: int, with_demos: int = 0) -> bool:
        """Whether a step that runs the program on at least `examples`, and on others `with_demos`, fits; gives it its
        share if so.

        The share is what is left, less the reserve, over `steps_left` steps, this one among them.
        """
        ...

    def allows(self, name: str, examples: int) -> bool:
        """Whether `examples` more fit into the step's share. `name` tells the question from others."""
        ...

    def minutes(self, name: str, *, keep: int) -> float | None:
        """Time left of the step's share, less that of running `keep` examples; None: no limit on time."""
        ...

    def fell_short(self) -> None:
        """Is told of work that had to fit into `minutes` and did so in part."""
        ...


class Unlimited:
    """Everything fits."""

    cut_short = False
    exceeded = False
    informed = True
    limited = False
    spending = ""

    def measured(self, examples: int) -> AbstractContextManager[None]:
        """Of no use here."""
        del examples
        return nullcontext()

    def dearer(self, factor: float) -> None:
        """Of no use here."""
        del factor

    def release(self, examples: int) -> None:
        """Of no use here."""
        del examples

    def expects(self, tokens: Mapping[str, float]) -> None:
        """Of no use here."""
        del tokens

    def begin(self, step: str, *, steps_left: int, examples: int, with_demos: int = 0) -> bool:
        """Always."""
        del step, steps_left, examples, with_demos
        return True

    def allows(self, name: str, examples: int) -> bool:
        """Always."""
        del name, examples
        return True

    def minutes(self, name: str, *, keep: int) -> float | None:
        """No limit."""
        del name, keep
        return None

    def fell_short(self) -> None:
        """Never."""


class LimitedBudget:
    """A budget with a limit; see the module. `reserve`: examples that are still to be scored when a step ends, the
    `zero_shot` ones of them with the spec's own prompts.

    `prices`: by model; what the journal holds of money at others is of no use.
    """

    limited = True

    def __init__(
        self,
        limit: Limit,
        *,
        account: Callable[[], Account],
        journal: StepJournal,
        reserve: int,
        zero_shot: int = 0,
        prices: Mapping[str, Price] = MappingProxyType({}),
    ) -> None:
        self._limit = limit
        self._prices = prices
        priced = digest([[name, asdict(price)] for name, price in prices.items()])
        self._at = f" at {priced}" if limit.unit == "money" else ""
        self._account = account
        self._journal = journal
        self._reserve = reserve
        self._zero_shot = zero_shot
        self._rate = 0.0
        self._first = 0.0
        self._with_demos = 0.0
        self._last = 0.0
        self._earlier = 0.0
        self._began = 0.0
        self._steps_left = 1
        self.cut_short = False
        """Whether anything was left out."""

    @property
    def informed(self) -> bool:
        """Whether anything is known of what an example costs. Time is not, while all was answered by a cache."""
        return self._rate > 0

    @contextmanager
    def measured(self, examples: int) -> Iterator[None]:
        """Keeps the dearest cost of an example; the first one stays known to every later budget of this journal."""
        before = self._account()
        yield
        found = self._price(self._account().minus(before)) / examples if examples else 0.0
        name = f"budget: {self._limit.unit} an example{self._at}"
        first = self._journal.memo(name, lambda: found, keep=lambda rate: rate > 0)
        self._first = self._first or first
        self._rate = max(self._rate, found, first)
        self._last = found

    def dearer(self, factor: float) -> None:
        """Candidates that ran together share a measurement, and the dearest of them counts."""
        self._rate = max(self._rate, self._last * factor)

    def release(self, examples: int) -> None:
        """So many of the reserve have been scored, with the spec's own prompts."""
        self._reserve -= examples
        self._zero_shot -= examples

    def expects(self, tokens: Mapping[str, float]) -> None:
        """See `Budget.expects`. Time is not known to follow: the demos of a module are the same for all examples, and
        an engine may compute what prompts share once.
        """
        more = 0.0
        if self._limit.unit == "tokens":
            more = sum(tokens.values())
        elif self._limit.unit == "money":
            more = (
                sum(self._prices[name].prompt * count for name, count in tokens.items() if name in self._prices) / 1e6
            )
        self._with_demos = max(self._with_demos, self._first + more)

    def begin(self, step: str, *, steps_left: int, examples: int, with_demos: int = 0) -> bool:
        """Whether the least work and the reserve fit into all that is left."""

        def asked() -> dict[str, float | bool]:
            spent = self._spent()
            least = self._rate * examples + max(self._rate, self._with_demos) * with_demos
            return self._answer(self._free(spent) >= least, spent)

        answer = self._asked(step, asked)
        self._began, self._steps_left = float(answer["spent"]), steps_left
        return bool(answer["allowed"])

    def allows(self, name: str, examples: int) -> bool:
        """Whether they fit into the step's share."""

        def asked() -> dict[str, float | bool]:
            spent = self._spent()
            return self._answer(spent + self._rate * examples <= self._ceiling(), spent)

        return bool(self._asked(name, asked)["allowed"])

    def minutes(self, name: str, *, keep: int) -> float | None:
        """Time left of the step's share, less that of `keep` examples, at least 0; None unless the limit is of time."""
        if self._limit.unit != "minutes":
            return None

        def asked() -> dict[str, float | bool]:
            spent = self._spent()
            return self._answer(True, spent, left=max(0.0, self._ceiling() - spent - self._rate * keep))

        return float(self._asked(name, asked)["left"])

    def fell_short(self) -> None:
        """More time would do more."""
        self.cut_short = True

    def _free(self, spent: float) -> float:
        """What may still be spent on steps. What ships may have as many demos as a step may show."""
        shipped = max(self._rate, self._with_demos) * (self._reserve - self._zero_shot)
        return self._limit.amount - spent - self._rate * self._zero_shot - shipped

    def _ceiling(self) -> float:
        """What may be spent by the end of the step, by what an example is known to cost by now."""
        return self._began + self._free(self._began) / self._steps_left

    def _answer(self, allowed: bool, spent: float, **more: float) -> dict[str, float | bool]:
        return {"allowed": allowed, "spent": spent, "rate": self._rate, **more}

    def _asked(self, name: str, make: Callable[[], dict[str, float | bool]]) -> dict[str, float | bool]:
        """The answer, kept under `name` and the limit. What an earlier process had spent by then counts on."""
        answer: dict[str, float | bool] = self._journal.memo(f"budget {self._limit.text}{self._at}: {name}", make)
        self._rate = max(self._rate, answer["rate"])
        self.cut_short = self.cut_short or not answer["allowed"]
        self._earlier += max(0.0, answer["spent"] - self._spent())
        return answer

    def too_small(self, step: str) -> CompileError:
        """The error where not even the first step fits."""
        dearer, fewer = "", ""
        if self._with_demos > self._rate:
            dearer = f" ({self._shown(self._with_demos)} with demos)"
            fewer = ", `--set optimize.prompts.max_labeled_demos=0`"
        return CompileError.of(
            "BTC466",
            f"the budget of {self._limit.text} is too small for the first step, `{step}`: "
            f"{self._shown(self._spent())} are spent on scoring the zero-shot program, an example costs about "
            f"{self._shown(self._rate)}{dearer}, and {self._reserve} have to be scored after the step",
            help=f"give more, or fewer examples with `--set data.dev.limit=N`{fewer}, or `--set optimize.strategy=[]`",
        )

    @property
    def exceeded(self) -> bool:
        """Whether more was spent than was to be."""
        return self._spent() > self._limit.amount

    @property
    def spending(self) -> str:
        """What has been spent of what."""
        return f"{self._shown(self._spent())} of a budget of {self._limit.text}"

    def _spent(self) -> float:
        return self._earlier + self._amount(self._account())

    def _amount(self, account: Account) -> float:
        if self._limit.unit == "minutes":
            return account.seconds / 60
        if self._limit.unit == "tokens":
            return float(account.prompt_tokens + account.completion_tokens)
        return account.cost

    def _price(self, account: Account) -> float:
        """What the work would cost if nothing of it were cached; 0 where the time of that is not known."""
        if self._limit.unit == "money":
            return account.worth
        fresh = account.calls - account.cached_calls
        if self._limit.unit == "tokens" or fresh == account.calls:
            return self._amount(account)
        return self._amount(account) / fresh * account.calls if fresh >= _TELLING else 0.0

    def _shown(self, amount: float) -> str:
        if self._limit.unit == "tokens":
            return f"{amount:,.0f} tokens"
        unit = "minutes" if self._limit.unit == "minutes" else self._limit.text.lstrip("0123456789. ")
        return f"{amount:.3g} {unit}" if amount < 100 else f"{amount:,.0f} {unit}"
