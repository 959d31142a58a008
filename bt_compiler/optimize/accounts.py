"""What a compile asks of its models, counted where every request passes: at the completion stores.

Numbers for reports alone; nothing depends on them, and they are outside every digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from bt_compiler.engine.cache import CompletionStore
from bt_compiler.engine.request import Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Work of one stretch of a compile."""

    seconds: float = 0.0
    calls: int = 0
    """Requests answered; identical ones within one run count once."""
    cached_calls: int = 0
    """Of these, answered from the journal or the cache."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """Money for the calls that were not cached, by the prices in the spec."""
    worth: float = 0.0
    """Money that all calls would have cost, had none been cached."""

    def minus(self, earlier: Account) -> Account:
        """What was added since `earlier`."""
        return Account(**{name: value - getattr(earlier, name) for name, value in asdict(self).items()})

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(**data)


class AccountedStore:
    """Several completion stores as one, which counts what passes through. Asked in order; a hit is written to those
    before it, a new completion to all.
    """

    def __init__(self, stores: Iterable[CompletionStore], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stores = tuple(stores)
        self._clock = clock
        self._start = clock()
        self._calls = 0
        self._cached = 0
        self._replayed = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cost = 0.0
        self._worth = 0.0

    @property
    def replayed(self) -> int:
        """Answers that the first store did not have and a later one had: of a journal and a cache, those given before
        the compile began.
        """
        return self._replayed

    def pay(self, amount: float, *, cached: bool = False) -> None:
        """Counts the price of a completion; one that was `cached` costs nothing."""
        self._worth += amount
        self._cost += 0.0 if cached else amount

    def get(self, key: str) -> Completion | None:
        """The completion of the first store that has it."""
        for index, store in enumerate(self._stores):
            found = store.get(key)
            if found is not None:
                for earlier in self._stores[:index]:
                    earlier.put(key, found)
                self._cached += 1
                self._replayed += index > 0
                self._count(found)
                return found
        return None

    def put(self, key: str, completion: Completion) -> None:
        """Into every store."""
        self._count(completion)
        for store in self._stores:
            store.put(key, completion)

    def put_many(self, items: Sequence[tuple[str, Completion]]) -> None:
        """Into every store, in one transaction each."""
        for _, completion in items:
            self._count(completion)
        for store in self._stores:
            store.put_many(items)

    def account(self) -> Account:
        """All since the start."""
        return Account(
            seconds=self._clock() - self._start,
            calls=self._calls,
            cached_calls=self._cached,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cost=self._cost,
            worth=self._worth,
        )

    def _count(self, completion: Completion) -> None:
        self._calls += 1
        self._prompt_tokens += completion.prompt_tokens
        self._completion_tokens += completion.completion_tokens
