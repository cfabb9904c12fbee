"""A reader between a tail and a log, in the orders of events that a real Redis can't be made to show."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from llmbridge.errors import Draining, Expired, Lost, RedisUnavailable, Restarted
from llmbridge.hub.fanout import Fanout
from llmbridge.hub.tail import Listener, Tail
from llmbridge.log.reading import LogReader, Page, Tip
from llmbridge.model.cursor import NO_CHECKSUM, Cursor
from llmbridge.model.records import Run, checksum_of
from llmbridge.rpc.wire import ProtoWire
from llmbridge.subscribe.place import Place
from llmbridge.subscribe.reader import Reader
from llmbridge.subscribe.start import Position
from llmbridge.v1.bridge_service_pb2 import SubscribeResponse
from llmbridge.v1.token_pb2 import Token

WIRE = ProtoWire()


def entry(sequence: int, text: str, *, sealed: bool = False, incarnation: int = 7) -> Run:
    fragment = SubscribeResponse(tokens=[Token(text=text)]).SerializeToString()
    return Run(incarnation, sequence, sequence, checksum_of(fragment), 1_000, sealed, (fragment,))


def cursor_of(run: Run) -> Cursor:
    return Cursor(run.incarnation, run.last, run.checksum)


class Hub:
    """A log, its tail, and events that happen while the log is read."""

    def __init__(self) -> None:
        self.log: list[Run] = []
        self.tail = self.new_tail()
        self.follows = 0
        self.reads = 0
        self.during_read: list[Callable[[], Any]] = []
        self.failures: list[Exception] = []

    def new_tail(self) -> Tail:
        tail = Tail("log", WIRE)
        tail.ready.set()
        return tail

    def append(self, *runs: Run, tell: bool = True) -> None:
        self.log += runs
        if tell:
            for run in runs:
                self.tail.extend(run)

    async def join(self, log: str, listener: Listener) -> Tail:
        self._fail()
        self.follows += 1
        if self.tail.closed:
            self.tail = self.new_tail()
            if self.log:
                self.tail.jump(self.tip())
        self.tail.listeners[listener] = None
        return self.tail

    def leave(self, tail: Tail, listener: Listener) -> None:
        del tail.listeners[listener]

    def tip(self) -> Tip:
        last = self.log[-1]
        return Tip(cursor_of(last), 100, 1, last.sealed)

    async def after(self, log: str, cursor: Cursor, tip: Tip | None) -> Page:
        self.reads += 1
        self._fail()
        if not self.log:
            raise Expired
        seen, tip = [run for run in self.log if run.first > cursor.sequence], self.tip()
        await asyncio.sleep(0)
        if self.during_read:
            self.during_read.pop(0)()
        if tip.cursor.incarnation != cursor.incarnation:
            raise Restarted("earliest")
        if tip.cursor.sequence < cursor.sequence:
            raise Lost("earliest")
        return Page(seen[0] if seen else None, 0, tip)

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def reader(self, heartbeat_seconds: float = 1_000) -> Reader:
        place = Place("log", cast("Fanout", self), cast("LogReader", self), WIRE)
        return Reader(place, WIRE, heartbeat_seconds)


def texts(message: bytes | None) -> list[str]:
    assert message is not None
    return [token.text for token in SubscribeResponse.FromString(message).tokens]


async def waits(reader: Reader) -> "asyncio.Task[bytes | None]":
    """Ask for a message and see that the reader comes to rest waiting for a change."""
    task = asyncio.create_task(reader.next_message())
    async with asyncio.timeout(5):
        while reader._change is None:
            assert not task.done()
            await asyncio.sleep(0)
    return task


@pytest.fixture
def hub() -> Hub:
    return Hub()


async def attached(hub: Hub, start: Cursor | Position = Position.BEGINNING) -> Reader:
    reader = hub.reader()
    await reader.attach(start)
    return reader


async def test_what_comes_while_the_log_is_read_is_not_slept_through(hub: Hub) -> None:
    one, two = entry(1, "a"), entry(2, "b")
    hub.append(one)
    reader = await attached(hub)
    assert texts(await reader.next_message()) == ["a"]
    # The tail stands elsewhere (lags), so the reader asks the log, which has nothing yet; the record comes meanwhile.
    hub.tail.jump(Tip(Cursor(7, 0, NO_CHECKSUM), 0, 0, False))

    def come() -> None:
        hub.append(two, tell=False)
        hub.tail.jump(hub.tip())

    hub.during_read.append(come)
    async with asyncio.timeout(5):
        assert texts(await reader.next_message()) == ["b"]


async def test_a_tail_that_lags_is_waited_for_without_spinning(hub: Hub) -> None:
    hub.append(entry(1, "a"), entry(2, "b"), tell=False)
    reader = await attached(hub, cursor_of(hub.log[0]))
    assert texts(await reader.next_message()) == ["b"]
    message = await waits(reader)
    reads = hub.reads
    for _ in range(20):
        await asyncio.sleep(0)
    assert hub.reads == reads
    for run in (*hub.log, entry(3, "c")):
        hub.tail.extend(run)
    assert texts(await message) == ["c"]


async def test_the_end_seen_in_the_log_before_the_tail_knows_is_the_end(hub: Hub) -> None:
    hub.append(entry(1, "a"), entry(2, "b", sealed=True), tell=False)
    for seen in range(3):
        reader = await attached(hub, cursor_of(hub.log[seen - 1]) if seen else Cursor(7, 0, NO_CHECKSUM))
        async with asyncio.timeout(5):
            for text in ("a", "b")[seen:]:
                assert texts(await reader.next_message()) == [text]
            assert await reader.next_message() is None


@pytest.mark.parametrize("new_log", [[], [entry(1, "a")], [entry(1, "x", incarnation=8)]])
async def test_a_tail_that_closes_makes_the_reader_ask_the_log(hub: Hub, new_log: list[Run]) -> None:
    hub.append(entry(1, "a"), entry(2, "b"))
    reader = await attached(hub)
    assert texts(await reader.next_message()) == ["a", "b"]
    message = await waits(reader)
    hub.log = new_log
    hub.tail.close()
    with pytest.raises((Expired, Lost, Restarted)):
        async with asyncio.timeout(5):
            await message


async def test_a_tail_that_closes_for_nothing_is_followed_anew(hub: Hub) -> None:
    hub.append(entry(1, "a"))
    reader = await attached(hub)
    assert texts(await reader.next_message()) == ["a"]
    message = await waits(reader)
    hub.tail.close()
    async with asyncio.timeout(5):
        while hub.follows < 2 or reader._change is None:
            await asyncio.sleep(0)
    hub.append(entry(2, "b"))
    assert texts(await message) == ["b"]


async def test_drain_ends_a_reader_that_waits_and_one_that_reads(hub: Hub) -> None:
    hub.append(entry(1, "a"))
    waiting, reading = await attached(hub), await attached(hub)
    for reader in (waiting, reading):
        assert texts(await reader.next_message()) == ["a"]
    message = await waits(waiting)
    waiting.drain()
    with pytest.raises(Draining) as told:
        await message
    assert told.value.cursor == str(cursor_of(hub.log[0]))
    # In the middle of a read that finds nothing.
    hub.tail.jump(Tip(Cursor(7, 0, NO_CHECKSUM), 0, 0, False))
    hub.during_read.append(reading.drain)
    with pytest.raises(Draining):
        async with asyncio.timeout(5):
            await reading.next_message()


async def test_drain_does_not_take_back_a_message_that_was_read(hub: Hub) -> None:
    hub.append(entry(1, "a"), tell=False)
    reader = await attached(hub, Cursor(7, 0, NO_CHECKSUM))
    reader.drain()
    assert texts(await reader.next_message()) == ["a"]
    with pytest.raises(Draining) as told:
        await reader.next_message()
    assert told.value.cursor == str(cursor_of(hub.log[0]))


async def test_the_end_is_the_end_also_while_draining(hub: Hub) -> None:
    hub.append(entry(1, "a", sealed=True))
    reader = await attached(hub)
    assert texts(await reader.next_message()) == ["a"]
    reader.drain()
    assert await reader.next_message() is None


async def test_an_outage_in_either_place_is_waited_out(hub: Hub) -> None:
    hub.append(entry(1, "a"), entry(2, "b"), tell=False)
    reader = await attached(hub, cursor_of(hub.log[0]))
    assert texts(await reader.next_message()) == ["b"]
    hub.tail.close()
    hub.failures += [RedisUnavailable("gone"), RedisUnavailable("still gone")]
    hub.append(entry(3, "c"), tell=False)
    async with asyncio.timeout(5):
        assert texts(await reader.next_message()) == ["c"]
    assert not hub.failures


async def test_heartbeats_come_when_due_and_leave_nothing_behind(hub: Hub) -> None:
    hub.append(entry(1, "a"))
    reader = hub.reader(heartbeat_seconds=0)
    await reader.attach(Position.BEGINNING)
    assert texts(await reader.next_message()) == ["a"]
    for _ in range(5):
        message = await waits(reader)
        reader.beat()
        heartbeat = SubscribeResponse.FromString(await message or b"")
        assert heartbeat == SubscribeResponse(cursor=str(cursor_of(hub.log[0])))
    assert len(hub.tail.listeners) == 1
    await reader.detach()
    assert not hub.tail.listeners


async def test_a_reader_that_is_cancelled_leaves_nothing_behind(hub: Hub) -> None:
    reader = await attached(hub)
    message = await waits(reader)
    message.cancel()
    await asyncio.wait([message])
    await reader.detach()
    assert not hub.tail.listeners


async def test_what_was_found_while_attaching_counts_when_it_is_handed_out(hub: Hub) -> None:
    hub.append(entry(1, "a"), entry(2, "b"))
    reader = await attached(hub, cursor_of(hub.log[0]))
    # An operator who ends it here must not tell the client that it has the second record.
    assert reader.cursor == str(cursor_of(hub.log[0]))
    assert texts(await reader.next_message()) == ["b"]
    assert reader.cursor == str(cursor_of(hub.log[1]))


async def test_the_lag_is_what_the_tail_has_beyond_the_cursor(hub: Hub) -> None:
    reader = await attached(hub)
    assert reader.lag == 0
    hub.append(entry(1, "a"), entry(2, "b"), entry(3, "c"))
    # It waited for the stream to begin.
    assert reader.lag == 3
    late = await attached(hub, cursor_of(hub.log[0]))
    assert texts(await late.next_message()) == ["b"]
    assert late.lag == 1
    hub.tail.jump(Tip(Cursor(7, 1, NO_CHECKSUM), 0, 0, False))
    assert late.lag == 0
    hub.tail.jump(Tip(Cursor(8, 100, NO_CHECKSUM), 0, 0, False))
    assert late.lag == 0
    await late.detach()
    assert late.lag == 0
