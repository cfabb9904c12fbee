"""The batcher: what goes together, in which order, who waits, and what each caller gets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from llmbridge.errors import RedisUnavailable
from llmbridge.log.batcher import Batcher

LINGER_SECONDS = 0.5


class Refused(Exception):
    """An outcome."""


@dataclass
class Exchange:
    """Notes each batch; answers an item with its double when it is let go, negative ones with an error."""

    batches: list[list[int]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    broken: Exception | None = None

    async def carry(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        await self.go.wait()
        if self.broken is not None:
            raise self.broken
        return [2 * item if item >= 0 else Refused(item) for item in items]


@asynccontextmanager
async def _running(
    exchange: Exchange,
    max_items: int = 100,
    max_bytes: int = 100,
    source_of: Callable[[int], object] = lambda _: None,
    linger_seconds: float = 0.0,
) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(exchange.carry, max_items, abs, max_bytes, source_of, linger_seconds)
    run = asyncio.create_task(batcher.run())
    yield batcher
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def _submitted(batcher: Batcher[int, int], *items: int) -> list["asyncio.Future[int]"]:
    """Submit and let the batcher have a look."""
    futures = [batcher.submit(item) for item in items]
    for _ in range(3):
        await asyncio.sleep(0)
    return futures


async def test_what_waits_while_one_batch_is_under_way_goes_with_the_next() -> None:
    exchange = Exchange()
    async with _running(exchange) as batcher:
        first = await _submitted(batcher, 1)
        rest = await _submitted(batcher, 2, 3) + await _submitted(batcher, 4)
        assert exchange.batches == [[1]]
        exchange.go.set()
        assert await asyncio.gather(*first, *rest) == [2, 4, 6, 8]
        assert exchange.batches == [[1], [2, 3, 4]]


@pytest.mark.parametrize(
    ("max_items", "max_bytes", "batches"),
    [
        (2, 100, [[1, 2], [3, 4], [5]]),
        (100, 3, [[1, 2], [3], [4], [5]]),
        (100, 4, [[1, 2, 3], [4], [5]]),
        (1, 1, [[1], [2], [3], [4], [5]]),
    ],
)
async def test_a_batch_has_limits_and_one_item_always_goes(
    max_items: int, max_bytes: int, batches: list[list[int]]
) -> None:
    exchange = Exchange()
    exchange.go.set()
    async with _running(exchange, max_items, max_bytes) as batcher:
        await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3, 4, 5)))
    assert exchange.batches == batches


async def test_each_gets_its_own_answer_or_error() -> None:
    exchange = Exchange()
    exchange.go.set()
    async with _running(exchange) as batcher:
        ended = await asyncio.gather(*(batcher.submit(item) for item in (1, -2, 3)), return_exceptions=True)
        assert [ended[0], ended[2]] == [2, 6]
        assert isinstance(ended[1], Refused)
        assert len(exchange.batches) == 1


async def test_a_batch_that_fails_fails_for_each_of_it_and_the_next_one_goes() -> None:
    exchange = Exchange(broken=Refused("all"))
    exchange.go.set()
    async with _running(exchange) as batcher:
        ended = await asyncio.gather(*(batcher.submit(item) for item in (1, 2)), return_exceptions=True)
        assert ended == [exchange.broken] * 2
        exchange.broken = None
        assert await batcher.submit(3) == 6


async def test_a_caller_that_leaves_does_not_disturb() -> None:
    exchange = Exchange()
    async with _running(exchange) as batcher:
        under_way, waiting, staying = await _submitted(batcher, 1) + await _submitted(batcher, 2, 3)
        under_way.cancel()
        waiting.cancel()
        await asyncio.sleep(0)
        exchange.go.set()
        assert await staying == 6
        assert exchange.batches == [[1], [2, 3]]


async def test_when_it_stops_nobody_waits_for_ever() -> None:
    exchange = Exchange()
    async with _running(exchange) as batcher:
        under_way, waiting = await _submitted(batcher, 1) + await _submitted(batcher, 2)
    ended = await asyncio.wait_for(asyncio.gather(under_way, waiting, return_exceptions=True), 5)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert isinstance(ended[1], RedisUnavailable)
    with pytest.raises(RedisUnavailable):
        await batcher.submit(3)


async def test_a_single_source_never_lingers() -> None:
    exchange = Exchange()
    exchange.go.set()
    async with _running(exchange, source_of=lambda _: "the same", linger_seconds=LINGER_SECONDS) as batcher:
        async with asyncio.timeout(LINGER_SECONDS):
            for item in range(20):
                await batcher.submit(item)
    assert exchange.batches == [[item] for item in range(20)]


async def test_sources_that_follow_each_other_closely_share_a_batch() -> None:
    exchange = Exchange()
    exchange.go.set()
    loop = asyncio.get_running_loop()
    async with _running(exchange, source_of=lambda item: item, linger_seconds=LINGER_SECONDS) as batcher:
        began = loop.time()
        assert await batcher.submit(1) == 2
        assert loop.time() - began < LINGER_SECONDS, "a bridge with little to do does not wait"
        held_back = await _submitted(batcher, 2)
        held_back += await _submitted(batcher, 3, 4)
        assert await asyncio.gather(*held_back) == [4, 6, 8]
        assert exchange.batches == [[1], [2, 3, 4]]
        assert LINGER_SECONDS * 0.9 < loop.time() - began < 3 * LINGER_SECONDS


async def test_one_that_is_finished_carries_what_waits_and_ends() -> None:
    exchange = Exchange()
    batcher = Batcher(exchange.carry, 1, abs, 100)
    run = asyncio.create_task(batcher.run())
    futures = await _submitted(batcher, 1, 2, 3)
    batcher.finish()
    with pytest.raises(RedisUnavailable, match="stopped"):
        await batcher.submit(4)
    exchange.go.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*futures) == [2, 4, 6]
        await run
    assert exchange.batches == [[1], [2], [3]]


async def test_groups_go_undivided_and_a_full_batch_does_not_linger() -> None:
    carried: list[list[str]] = []

    async def carry(groups: Sequence[str]) -> list[str]:
        carried.append(list(groups))
        return list(groups)

    batcher = Batcher(carry, 4, lambda _: 0, 1, lambda group: group, LINGER_SECONDS, count_of=len)
    run = asyncio.create_task(batcher.run())
    loop = asyncio.get_running_loop()
    began = loop.time()
    groups = ["aa", "bb", "c", "dddd", "eeeeee", "f", "ggg"]
    assert await asyncio.gather(*map(batcher.submit, groups)) == groups
    assert carried == [["aa", "bb"], ["c"], ["dddd"], ["eeeeee"], ["f", "ggg"]]
    assert loop.time() - began < LINGER_SECONDS, "what waits is always a full batch"
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
