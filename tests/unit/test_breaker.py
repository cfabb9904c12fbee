"""When what failed may be tried again."""

import asyncio

import pytest

from llmbridge.errors import RedisUnavailable
from llmbridge.log.connections import LONGEST_PAUSE_SECONDS, Breaker, pause_seconds


async def test_it_is_closed_until_something_fails() -> None:
    breaker = Breaker()
    breaker.raise_if_open()
    breaker.begin()
    # The first attempt of all: those that come meanwhile wait for it.
    breaker.raise_if_open()
    breaker.succeeded()
    assert breaker.pause_left == 0


async def test_after_a_failure_nobody_waits_and_one_at_a_time_tries() -> None:
    breaker = Breaker()
    breaker.begin()
    breaker.failed()
    for refused in (breaker.raise_if_open, breaker.begin):
        with pytest.raises(RedisUnavailable, match="a moment ago"):
            refused()
    await asyncio.sleep(breaker.pause_left + 0.001)
    breaker.raise_if_open()
    breaker.begin()
    with pytest.raises(RedisUnavailable):
        breaker.raise_if_open()
    with pytest.raises(RedisUnavailable):
        breaker.begin()
    breaker.succeeded()
    breaker.raise_if_open()


async def test_an_attempt_that_was_cut_short_counts_for_nothing() -> None:
    breaker = Breaker()
    breaker.failed()
    await asyncio.sleep(breaker.pause_left + 0.001)
    breaker.begin()
    breaker.abandoned()
    breaker.raise_if_open()
    assert breaker.failures == 1


def test_pauses_grow_up_to_the_longest_and_are_never_alike() -> None:
    assert 0 < pause_seconds(1) <= 0.05
    assert max(pause_seconds(n) for n in range(1, 5_000)) <= LONGEST_PAUSE_SECONDS
    assert min(pause_seconds(10_000) for _ in range(50)) >= LONGEST_PAUSE_SECONDS / 2
    assert len({pause_seconds(8) for _ in range(20)}) > 1
