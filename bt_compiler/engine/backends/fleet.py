"""Which endpoint a request goes to, and how many go to each at once. Knows clocks and loads; nothing of HTTP.

An endpoint takes as many requests at once as still make it faster: its limit doubles while a round of full load ends
more requests a second than the round before, falls back to little more than before where it does not (what waits at one
server cannot be given to another), and is halved where the server says that it is too much (as TCP does, Chiu & Jain
1989). Requests that share a prefix go where it has been computed, unless others are less loaded by more
than computing it anew is worth.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

FIRST_LIMIT = 16
"""Requests at once that an endpoint starts with."""
MOST = 512
"""Requests at once beyond which no endpoint is tried."""
DOWN_FOR = 10.0
"""Seconds that an endpoint which cannot be connected to gets no work while another can be."""
NEW_PREFIX = 1.5
"""Requests in flight that computing a prefix anew is worth."""
_FASTER = 1.2
"""What a round has to gain for the limit to be doubled again."""
_QUEUED = 1.25
"""The limit that an endpoint settles at, over the least that was as fast: it is never idle between two requests."""
_ROUNDS = 16
"""Rounds after which doubling is tried again, for a single round may have been slow by chance."""
_LONGEST_PAUSE = 16.0
"""Seconds that doubling pauses go up to: quotas are by the minute, and many servers do not say how long."""
_PREFIXES = 256
"""Prefixes remembered for each endpoint."""


@dataclass(slots=True)
class _Endpoint:
    url: str
    limit: int = FIRST_LIMIT
    load: int = 0
    adapted: bool = False
    """Whether what is in flight there is for adapters."""
    down_until: float = 0.0
    paused_until: float = 0.0
    refusals: int = 0
    """Times that the server said that it is too much since it last answered."""
    prefixes: OrderedDict[str, None] = field(default_factory=OrderedDict)
    enough: int = FIRST_LIMIT
    """The limit to fall back to where doubling does not pay."""
    resting: int = 0
    """Rounds until doubling is tried again; 0 while it is."""
    ceiling: int = MOST
    """Where the server said that it is too much."""
    round: int = 0
    """Requests that ended since the endpoint was last found full."""
    began: float | None = None
    """When it was."""
    rate: float = 0.0
    """Requests a second of the fastest round."""

    @property
    def back(self) -> float:
        """When it may be asked, at the earliest."""
        return max(self.down_until, self.paused_until)


@dataclass(slots=True)
class _Waiting:
    prefix: str
    adapted: bool
    avoid: Collection[str]
    place: asyncio.Future[str]


class Fleet:
    """The endpoints of one backend. All methods run on one event loop."""

    def __init__(self, urls: Sequence[str], *, most: int | None, loop: asyncio.AbstractEventLoop) -> None:
        """`most`: requests in flight over all endpoints; None: as many as they take."""
        self._endpoints = {url: _Endpoint(url) for url in urls}
        self._most = most
        self._loop = loop
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def refusals(self) -> int:
        """Times that every endpoint that is up has said that it is too much since it last answered."""
        return min(endpoint.refusals for endpoint in self._up())

    @property
    def limits(self) -> list[int]:
        """Requests at once that each endpoint was found to take."""
        return [endpoint.limit for endpoint in self._endpoints.values()]

    async def take(self, prefix: str, avoid: Collection[str] = (), *, adapted: bool = False) -> str:
        """Waits for a place and gives the endpoint's URL. `avoid`: endpoints that failed this request before.

        `adapted`: whether an adapter is to answer. Those never share an endpoint with requests of the base model: on
        CPUs vLLM 0.32 computes rows of the base with the weights of an adapter in the same batch.
        """
        waiting = _Waiting(prefix, adapted, avoid, self._loop.create_future())
        self._waiting.append(waiting)
        self._assign()
        try:
            return await waiting.place
        except asyncio.CancelledError:
            if waiting.place.done() and not waiting.place.cancelled():
                self._leave(self._endpoints[waiting.place.result()])
            raise

    def done(self, url: str) -> None:
        """A request ended well."""
        endpoint = self._endpoints[url]
        endpoint.down_until, endpoint.refusals = 0.0, 0
        if endpoint.began is not None:
            endpoint.round += 1
            if endpoint.round >= endpoint.limit:
                self._end_round(endpoint)
        self._leave(endpoint)

    def failed(self, url: str) -> None:
        """A request failed there for a reason that says nothing of the others."""
        self._leave(self._endpoints[url])

    def overloaded(self, url: str, wait: float, backoff: float) -> None:
        """The server asked for `wait` seconds without requests, which may be too few. `backoff`: those it gets at least
        the first time, doubled each further time in a row.
        """
        endpoint = self._endpoints[url]
        if endpoint.back <= self._loop.time():  # once for all that were in flight together
            endpoint.refusals += 1
        self._halve(endpoint)
        least = min(backoff * 2 ** max(endpoint.refusals - 1, 0), _LONGEST_PAUSE)
        endpoint.paused_until = max(endpoint.paused_until, self._loop.time() + max(wait, least))
        self._leave(endpoint)

    def hung(self, url: str) -> None:
        """The server did not answer in time: it gets less, and nothing for a while."""
        self._halve(self._endpoints[url])
        self.unreachable(url)

    def _halve(self, endpoint: _Endpoint) -> None:
        """Once for all that were in flight together."""
        if endpoint.back > self._loop.time():
            return
        endpoint.ceiling = max(1, endpoint.limit)
        endpoint.limit = max(1, endpoint.limit // 2)
        endpoint.resting, endpoint.began, endpoint.round = _ROUNDS, None, 0

    def unreachable(self, url: str) -> None:
        """No connection: left out for a while."""
        endpoint = self._endpoints[url]
        endpoint.down_until = self._loop.time() + DOWN_FOR
        endpoint.prefixes.clear()  # what comes back has computed nothing
        self._leave(endpoint)

    def others(self, avoid: Collection[str]) -> bool:
        """Whether an endpoint may be asked now, were it idle, that is not among `avoid`."""
        return any(one.back <= self._loop.time() and one.url not in avoid for one in self._endpoints.values())

    def _end_round(self, endpoint: _Endpoint) -> None:
        began = self._loop.time() if endpoint.began is None else endpoint.began
        rate = endpoint.round / max(self._loop.time() - began, 1e-6)
        if endpoint.resting > 1:
            endpoint.resting -= 1
            if endpoint.ceiling < MOST:
                endpoint.limit = min(endpoint.limit + 1, endpoint.ceiling)
        elif endpoint.resting == 1 or rate > _FASTER * endpoint.rate:
            endpoint.enough = endpoint.limit if endpoint.resting else int(endpoint.limit * _QUEUED)
            endpoint.resting, endpoint.rate = 0, rate
            endpoint.limit = min(endpoint.limit * 2, endpoint.ceiling)
        else:
            endpoint.resting, endpoint.limit = _ROUNDS, min(endpoint.enough, endpoint.ceiling)
        endpoint.began, endpoint.round = None, 0

    def _leave(self, endpoint: _Endpoint) -> None:
        endpoint.load -= 1
        self._assign()

    def _assign(self) -> None:
        """Gives places to those that wait, the first first. Who waits for few endpoints does not hold up the others."""
        awaited: set[str] = set()
        passed: list[_Waiting] = []
        while self._waiting and (room := [one for one in self._with_room() if one.url not in awaited]):
            first = self._waiting.popleft()
            if first.place.done():  # cancelled
                continue
            wanted = self._wanted(first)
            free = [one for one in room if one.url in wanted and (one.load == 0 or one.adapted == first.adapted)]
            if not free:
                awaited |= wanted
                passed.append(first)
                continue
            endpoint = min(free, key=lambda one: self._score(one, first.prefix))
            endpoint.load += 1
            endpoint.adapted = first.adapted
            endpoint.prefixes[first.prefix] = None
            endpoint.prefixes.move_to_end(first.prefix)
            if len(endpoint.prefixes) > _PREFIXES:
                endpoint.prefixes.popitem(last=False)
            if endpoint.load >= endpoint.limit and endpoint.began is None:
                endpoint.began, endpoint.round = self._loop.time(), 0
            first.place.set_result(endpoint.url)
        self._waiting.extendleft(reversed(passed))
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        """Sees that places are given out again once the next endpoint may be asked."""
        now = self._loop.time()
        soonest = min((one.back for one in self._endpoints.values() if one.back > now), default=None)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if soonest is None else self._loop.call_at(soonest, self._assign)

    def _up(self) -> list[_Endpoint]:
        """Those that could be connected to; all where none could: the next try finds out."""
        everyone = list(self._endpoints.values())
        return [one for one in everyone if one.down_until <= self._loop.time()] or everyone

    def _wanted(self, waiting: _Waiting) -> set[str]:
        """Of those that are up: what may be asked now and did not fail the request, or else all."""
        now, up = self._loop.time(), self._up()
        wanted = {one.url for one in up if one.paused_until <= now and one.url not in waiting.avoid}
        return wanted or {one.url for one in up}

    def _with_room(self) -> list[_Endpoint]:
        """Those that may be asked now and take another request."""
        if self._most is not None and sum(one.load for one in self._endpoints.values()) >= self._most:
            return []
        return [one for one in self._up() if one.load < one.limit and one.paused_until <= self._loop.time()]

    def _score(self, endpoint: _Endpoint, prefix: str) -> float:
        anew = 0.0 if prefix in endpoint.prefixes else NEW_PREFIX
        return (endpoint.load + anew) / endpoint.limit
