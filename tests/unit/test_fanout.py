"""Which tails are looked at, and when: one that has to wait for its log keeps no other waiting."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from llmbridge.hub.fanout import Fanout
from llmbridge.hub.tail import Tail
from llmbridge.log.reading import LogReader, Page, Tip
from llmbridge.log.wakeups import Listener, Subscription
from llmbridge.model.cursor import Cursor
from tests.support.fake_hub import INCARNATION, WIRE

NEVER_MS = 3_600_000
PATIENCE_SECONDS = 20.0


class _Channels:
    """Confirms subscriptions when told."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, Subscription] = {}

    def subscribe(self, channel: str, listener: Listener) -> Subscription:
        subscription = self.subscriptions[channel] = Subscription(channel.encode(), listener)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        del self.subscriptions[subscription.channel.decode()]

    def confirm(self, log: str) -> None:
        self.subscriptions[log].confirmed.set()
        self.say(log)

    def say(self, log: str) -> None:
        """Have a listener told that messages may have been lost."""
        self.subscriptions[log].listener(None)

    async def run(self) -> None: ...


class _Reader:
    """A log that stands where a test says; it answers as soon as it may."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.sequence = 1
        self.may_answer: dict[str, asyncio.Event] = {}

    async def tip(self, log: str) -> Tip | None:
        tip = Tip(Cursor(INCARNATION, self.sequence, f"{self.sequence:08x}"), 1, 1, False)
        self.asked.put_nowait(log)
        if log in self.may_answer:
            await self.may_answer[log].wait()
        return tip

    async def after(self, log: str, cursor: Cursor, tip: Tip | None) -> Page:
        del cursor, tip
        found = await self.tip(log)
        assert found is not None
        return Page(None, 0, found)


@asynccontextmanager
async def _running() -> AsyncIterator[tuple[Fanout, _Channels, _Reader, Callable[[str], asyncio.Task[Tail]]]]:
    channels, reader = _Channels(), _Reader()
    fanout = Fanout(cast("LogReader", reader), channels, WIRE, NEVER_MS, NEVER_MS)
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fanout.run())
        yield fanout, channels, reader, lambda log: tasks.create_task(fanout.join(log, lambda: None))
        running.cancel()


async def _subscribed(channels: _Channels, log: str) -> None:
    while log not in channels.subscriptions:
        await asyncio.sleep(0)


async def test_a_log_that_does_not_answer_holds_up_no_other() -> None:
    async with _running() as (_, channels, reader, join):
        reader.may_answer["slow"] = asyncio.Event()
        slow = join("slow")
        await _subscribed(channels, "slow")
        channels.confirm("slow")
        assert await reader.asked.get() == "slow"
        fast = join("fast")
        await _subscribed(channels, "fast")
        channels.confirm("fast")
        assert (await fast).cursor
        assert not slow.done()
        reader.may_answer["slow"].set()
        assert (await slow).cursor


async def test_what_is_heard_during_a_look_leads_to_one_more() -> None:
    """The answer may have been on its way already when it happened."""
    async with _running() as (_, channels, reader, join):
        joining = join("log")
        await _subscribed(channels, "log")
        channels.confirm("log")
        tail = await joining
        assert await reader.asked.get() == "log"
        reader.may_answer["log"] = asyncio.Event()
        channels.say("log")
        assert await reader.asked.get() == "log"
        for _ in range(3):
            channels.say("log")
        for _ in range(5):
            await asyncio.sleep(0)
        assert reader.asked.empty(), "one at a time"
        reader.may_answer.pop("log").set()
        assert await reader.asked.get() == "log"
        for _ in range(5):
            await asyncio.sleep(0)
        assert reader.asked.empty(), "one for all that was heard"
        assert not tail.closed


async def test_one_that_was_left_is_not_looked_at_again() -> None:
    async with _running() as (fanout, channels, reader, _):

        def listener() -> None: ...

        joining = asyncio.ensure_future(fanout.join("log", listener))
        await _subscribed(channels, "log")
        channels.confirm("log")
        tail = await joining
        assert await reader.asked.get() == "log"
        may_answer = reader.may_answer["log"] = asyncio.Event()
        channels.say("log")
        assert await reader.asked.get() == "log"
        channels.say("log")
        fanout.leave(tail, listener)
        may_answer.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert reader.asked.empty()
        assert (fanout.tails, channels.subscriptions) == (0, {})
