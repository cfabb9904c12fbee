"""The event loop that tests run on: what it takes for time, and what not."""

import asyncio
import selectors
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.steady_loop import LONGEST_TURN_SECONDS, SteadyLoop

STALL_SECONDS = 4 * LONGEST_TURN_SECONDS


async def test_tests_run_on_it() -> None:
    assert isinstance(asyncio.get_running_loop(), SteadyLoop)


async def test_a_turn_that_takes_long_is_little_time() -> None:
    clock = asyncio.get_running_loop().time
    began, really_began = clock(), time.monotonic()
    fired: list[float] = []
    asyncio.get_running_loop().call_later(2 * LONGEST_TURN_SECONDS, lambda: fired.append(clock() - began))
    time.sleep(STALL_SECONDS)
    assert clock() - began <= LONGEST_TURN_SECONDS
    await asyncio.sleep(0)
    assert not fired
    await asyncio.sleep(2 * LONGEST_TURN_SECONDS)
    assert fired
    assert fired[0] >= 2 * LONGEST_TURN_SECONDS - 0.001
    assert time.monotonic() - really_began > STALL_SECONDS + LONGEST_TURN_SECONDS / 2


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has so many waits of a selector, from now on, come back late."""
    left, select = 0, selectors.DefaultSelector.select

    def late_select(self: Any, timeout: float | None = None) -> Any:
        nonlocal left
        if timeout and left:
            left -= 1
            time.sleep(timeout + STALL_SECONDS)
        return select(self, timeout)

    def begin(times: int) -> None:
        nonlocal left
        left = times

    monkeypatch.setattr(selectors.DefaultSelector, "select", late_select)
    return begin


async def test_a_wait_that_takes_too_long_is_none(late: Callable[[int], None]) -> None:
    clock = asyncio.get_running_loop().time
    late(1)
    began, really_began = clock(), time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - really_began > STALL_SECONDS + 0.05
    assert clock() - began < STALL_SECONDS


async def test_timers_end_also_when_every_wait_takes_too_long(late: Callable[[int], None]) -> None:
    late(1_000)
    async with asyncio.timeout(10):
        await asyncio.sleep(0.05)
    late(0)
