"""Which endpoint gets a request and how many get there at once, on a clock of its own: nobody waits."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bt_compiler.engine.backends.fleet import DOWN_FOR, FIRST_LIMIT, Fleet


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self._clock.now += timeout
        return super().select(0)


def on_a_clock(story: Callable[[Clock], Any]) -> Any:
    loop = Clock()
    try:
        return loop.run_until_complete(asyncio.wait_for(story(loop), 10_000))
    finally:
        loop.close()


class Server:
    """Answers `slots` requests at once in `seconds` each; the others wait, or are refused with 429."""

    def __init__(self, slots: int, seconds: float = 1.0, *, strict: bool = False) -> None:
        self.free = asyncio.Semaphore(slots)
        self.slots, self.seconds, self.strict = slots, seconds, strict
        self.now = self.most = self.refused = 0
        self.prefixes: Counter[str] = Counter()

    async def answer(self, fleet: Fleet, url: str, prefix: str) -> bool:
        if self.strict and self.now >= self.slots:
            self.refused += 1
            fleet.overloaded(url, 0.0, 0.5)
            return False
        self.now += 1
        self.most = max(self.most, self.now)
        async with self.free:
            await asyncio.sleep(self.seconds)
        self.now -= 1
        self.prefixes[prefix] += 1
        fleet.done(url)
        return True


async def work(fleet: Fleet, servers: dict[str, Server], prefixes: list[str]) -> None:
    async def one(prefix: str) -> None:
        while not await servers[url := await fleet.take(prefix)].answer(fleet, url, prefix):
            pass

    await asyncio.gather(*(one(prefix) for prefix in prefixes))


def test_an_endpoint_gets_as_much_as_makes_it_faster() -> None:
    async def story(loop: Clock) -> None:
        fleet, server = Fleet(["a"], most=None, loop=loop), Server(32)
        await work(fleet, {"a": server}, ["p"] * 2000)
        assert fleet.limits == [40]  # a quarter more than is answered at once: never idle
        assert loop.now < 2000 / 32 + 6

    on_a_clock(story)


def test_two_endpoints_take_half_the_time_of_one_whatever_they_share() -> None:
    def seconds(urls: list[str], prefixes: list[str]) -> float:
        async def story(loop: Clock) -> float:
            await work(Fleet(urls, most=None, loop=loop), {url: Server(16) for url in urls}, prefixes)
            return loop.now

        return float(on_a_clock(story))

    for prefixes in (["p"] * 800, [f"p{number % 5}" for number in range(800)], [str(number) for number in range(800)]):
        assert seconds(["a"], prefixes) / seconds(["a", "b"], prefixes) > 1.9


def test_a_faster_endpoint_gets_more() -> None:
    async def story(loop: Clock) -> None:
        servers = {"slow": Server(8, 4.0), "fast": Server(32, 1.0)}
        await work(Fleet(list(servers), most=None, loop=loop), servers, ["p"] * 1000)
        assert servers["fast"].prefixes.total() > 6 * servers["slow"].prefixes.total()

    on_a_clock(story)


def test_requests_that_share_a_prefix_stay_together() -> None:
    async def story(loop: Clock) -> None:
        servers = {url: Server(64) for url in "ab"}
        fleet = Fleet("ab", most=8, loop=loop)
        await work(fleet, servers, ["one", "two"] * 100)
        homes = [
            {name for name, server in servers.items() if server.prefixes[prefix] > 20} for prefix in ("one", "two")
        ]
        assert sorted(map(sorted, homes)) == [["a"], ["b"]]

    on_a_clock(story)


def test_a_rate_limit_is_obeyed_and_found() -> None:
    async def story(loop: Clock) -> None:
        fleet, server = Fleet(["a"], most=None, loop=loop), Server(5, strict=True)
        await work(fleet, {"a": server}, ["p"] * 300)
        assert server.most == 5
        assert server.refused < 60
        assert loop.now < 2.5 * 300 / 5

    on_a_clock(story)


def test_an_endpoint_that_is_down_is_left_out_until_it_may_be_back() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        assert await fleet.take("p") == "a"
        fleet.unreachable("a")
        for _ in range(FIRST_LIMIT):
            assert await fleet.take("p") == "b"
        waiting = asyncio.ensure_future(fleet.take("p"))  # `b` is full, and `a` is not asked
        await asyncio.sleep(0.1)
        assert not waiting.done()
        fleet.done("b")
        assert await waiting == "b"
        await asyncio.sleep(DOWN_FOR)
        assert await fleet.take("p") == "a"

    on_a_clock(story)


def test_where_all_are_down_the_next_try_finds_out() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        for url in ("a", "b"):
            assert await fleet.take("p", avoid={"a"} if url == "b" else ()) == url
            fleet.unreachable(url)
        assert not fleet.others(())
        assert await fleet.take("p") in ("a", "b")

    on_a_clock(story)


def test_a_request_goes_elsewhere_after_a_failure() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        first = await fleet.take("p")
        fleet.failed(first)
        assert await fleet.take("p", avoid={first}) != first
        assert not fleet.others({"a", "b"})

    on_a_clock(story)


def test_the_bound_over_all_holds_and_who_leaves_the_queue_takes_no_place() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=3, loop=loop)
        places = [await fleet.take(str(number)) for number in range(3)]
        waiting = [asyncio.ensure_future(fleet.take("p")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        fleet.done(places[0])
        await waiting[1]
        waiting[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        for url in (places[1], places[2], waiting[1].result()):
            fleet.done(url)
        again = [await fleet.take("p") for _ in range(3)]
        assert len(again) == 3

    on_a_clock(story)


def test_base_and_adapters_never_share_an_endpoint() -> None:
    async def story(loop: Clock) -> None:
        fleet, there = Fleet("ab", most=None, loop=loop), {url: Counter[bool]() for url in "ab"}

        async def one(number: int) -> None:
            adapted = number % 3 == 0
            url = await fleet.take("p", adapted=adapted)
            there[url][adapted] += 1
            assert not there[url][not adapted]
            await asyncio.sleep(1 + number % 5)
            there[url][adapted] -= 1
            fleet.done(url)

        await asyncio.gather(*(one(number) for number in range(300)))

    on_a_clock(story)


def test_an_endpoint_that_hangs_gets_less_and_nothing_for_a_while() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        assert await fleet.take("p") == "a"
        fleet.hung("a")
        assert fleet.limits == [FIRST_LIMIT // 2, FIRST_LIMIT]
        assert {await fleet.take("p") for _ in range(FIRST_LIMIT)} == {"b"}

    on_a_clock(story)


def test_who_waits_for_one_endpoint_does_not_hold_up_the_others() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        for _ in range(FIRST_LIMIT):
            assert await fleet.take("p", avoid={"a"}) == "b"
        again = asyncio.ensure_future(fleet.take("p", avoid={"a"}))  # `b` is full, `a` failed it
        others = [asyncio.ensure_future(fleet.take("p")) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert ([one.result() for one in others], again.done()) == (["a"] * 3, False)
        adapted = [asyncio.ensure_future(fleet.take("p", adapted=True)) for _ in range(2)]
        late = asyncio.ensure_future(fleet.take("p"))  # would keep an adapter from `a` for good
        fleet.done("b")
        assert await again == "b"
        for _ in range(3):
            assert not adapted[0].done()
            fleet.done("a")
        assert [await one for one in adapted] == ["a", "a"]
        assert not late.done()
        fleet.done("b")
        assert await late == "b"

    on_a_clock(story)


def test_who_would_have_to_wait_for_a_paused_endpoint_goes_back_to_the_one_that_failed() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("ab", most=None, loop=loop)
        assert await fleet.take("p", avoid={"a"}) == "b"
        fleet.overloaded("b", 40.0, 0.5)
        assert not fleet.others({"a"})  # else it would be tried on `a` without a wait between
        assert await fleet.take("p", avoid={"a"}) == "a"
        assert loop.now < 1

    on_a_clock(story)


def test_the_first_pause_to_end_ends_the_wait() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet("abc", most=3, loop=loop)
        for url in "abc":
            assert await fleet.take(url, avoid=set("abc") - {url}) == url
        fleet.overloaded("b", 40.0, 0.5)
        fleet.unreachable("c")
        waiting = asyncio.ensure_future(fleet.take("p", adapted=True))
        await asyncio.sleep(0)
        fleet.overloaded("a", 1.0, 0.5)
        assert (await waiting, loop.now) == ("a", pytest.approx(1.0))
        fleet.overloaded("a", 30.0, 0.5)
        assert (await fleet.take("p"), loop.now) == ("c", pytest.approx(DOWN_FOR))

    on_a_clock(story)


def test_a_quota_by_the_minute_is_waited_for_whatever_the_server_says_of_it() -> None:
    async def story(loop: Clock) -> None:
        fleet = Fleet(["a"], most=None, loop=loop)
        answered: list[float] = []
        refused: Counter[int] = Counter()

        async def one(number: int) -> None:
            await fleet.take("p")
            while sum(at > loop.now - 60 for at in answered) >= 3:
                refused[number] += 1
                fleet.overloaded("a", 0.0, 0.5)  # no `Retry-After`, or one of 0
                await fleet.take("p")
            answered.append(loop.now)
            fleet.done("a")

        await asyncio.gather(*(one(number) for number in range(12)))
        assert loop.now < 4 * 64
        assert refused.total() < 60
        assert fleet.refusals == 0

    on_a_clock(story)
