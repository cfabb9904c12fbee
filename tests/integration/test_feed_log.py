"""What the scripts record in the lifecycle feed, on each Redis: each way to create and to seal, and what is kept."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from llmbridge.errors import LimitExceeded, RedisUnavailable, StreamExists
from llmbridge.groups.places import GroupPlaces
from llmbridge.log.appending import LogDefaults
from llmbridge.log.feed import FeedLog, LifecycleEntry, number_of
from llmbridge.log.groups import GroupPlace, GroupSettings, History
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, FinishReason, Producer, Sealer
from tests.support.log_parts import DAY_MS, LogParts, log_parts
from tests.support.model_log import WIRE, Seal
from tests.support.redis_process import RedisProcess

NAME = StreamName("s", "m", "r")
PRODUCER = Producer(0, "p")
STOP = WIRE.completion(FinishReason.STOP, "")
CANCEL = Seal(Sealer.CANCEL, FinishReason.CANCELLED)
GROUP = GroupSettings(0, 0)


@pytest.fixture
async def parts(each_redis: RedisProcess, key_prefix: str) -> AsyncIterator[LogParts]:
    async with log_parts(each_redis.url, key_prefix, partitions=1) as running:
        yield running


def token(first: int, finish: FinishReason | None = None) -> Append:
    return Append(first, 1, finish, PRODUCER, b"x", STOP if finish else b"")


def feed_group(parts: LogParts) -> GroupPlace:
    return GroupPlaces(parts.keys).of_feed(0, "g")


@dataclass(frozen=True)
class Event:
    """An event, with its number."""

    n: int
    entry: LifecycleEntry

    @property
    def short(self) -> tuple[int, str, int, Sealer | None, int]:
        entry = self.entry
        return self.n, entry.stream.response_id, entry.cursor.sequence, entry.sealer, entry.tokens


async def events(parts: LogParts) -> list[Event]:
    return [Event(n, entry) for n, entry in await parts.feed(0)]


async def shorts(parts: LogParts) -> list[tuple[int, str, int, Sealer | None, int]]:
    return [event.short for event in await events(parts)]


async def test_appends_create_and_complete(parts: LogParts) -> None:
    await parts.store(NAME, token(1))
    await parts.store(NAME, token(2))
    appended = await parts.appends.append(NAME, token(3, FinishReason.STOP))
    created, completed = await events(parts)
    assert created.short == (1, "r", 0, None, 0)
    assert completed.short == (2, "r", 4, Sealer.PRODUCER, 3)
    # The event's cursor is the completion's; and from the created event's everything can be read.
    assert completed.entry.cursor == appended.cursor  # type: ignore[union-attr]
    assert created.entry.cursor.incarnation == completed.entry.cursor.incarnation
    assert (created.entry.completion, completed.entry.completion) == (b"", STOP)
    assert created.entry.stream == completed.entry.stream == NAME
    stored: Any = await parts.client.xrange(parts.keys.stream(NAME).log)
    first_ms, last_ms = (int(fields[b"i"].split()[0]) for _, fields in (stored[0], stored[-1]))
    assert (created.entry.recorded_ms, completed.entry.recorded_ms) == (first_ms, last_ms)
    assert created.entry.created_ms == first_ms


async def test_one_append_that_does_both_gives_both_in_order(parts: LogParts) -> None:
    await parts.store(NAME, token(1, FinishReason.LENGTH))
    assert await shorts(parts) == [(1, "r", 0, None, 0), (2, "r", 2, Sealer.PRODUCER, 1)]


async def test_create_and_the_seals_of_the_bridge(parts: LogParts) -> None:
    await parts.streams.create(NAME, None, None, DAY_MS)
    await parts.seal(NAME, Seal(Sealer.LOST, FinishReason.ERROR))
    absent = StreamName("s", "m", "absent")
    await parts.seal(absent, CANCEL)
    assert await shorts(parts) == [
        (1, "r", 0, None, 0),
        (2, "r", 1, Sealer.LOST, 0),
        (3, "absent", 0, None, 0),
        (4, "absent", 1, Sealer.CANCEL, 0),
    ]
    assert (await events(parts))[-1].entry.completion == CANCEL.fragment


async def test_what_changes_nothing_records_nothing(parts: LogParts) -> None:
    await parts.store(NAME, token(1))
    before = await events(parts)
    assert len(before) == 1
    # A gap, a duplicate, a second creation; then a second seal and an append behind the end.
    await parts.append(NAME, token(7))
    await parts.append(NAME, token(1))
    with pytest.raises(StreamExists):
        await parts.streams.create(NAME, None, None, DAY_MS)
    await parts.append(StreamName("s", "m", "gap"), token(2, FinishReason.STOP))
    assert await events(parts) == before
    await parts.seal(NAME, CANCEL)
    after = await events(parts)
    await parts.seal(NAME, CANCEL)
    await parts.append(NAME, token(3, FinishReason.STOP))
    await parts.streams.delete(NAME)
    assert await events(parts) == after
    # A stream that is made anew is another one.
    await parts.store(NAME, token(1))
    again = (await events(parts))[-1]
    assert (again.n, again.entry.stream) == (3, NAME)
    assert again.entry.cursor.incarnation > after[0].entry.cursor.incarnation


async def test_refused_appends_record_nothing(each_redis: RedisProcess, key_prefix: str) -> None:
    defaults = LogDefaults(DAY_MS, 0, max_stream_tokens=2)
    async with log_parts(each_redis.url, key_prefix, defaults, partitions=1) as parts:
        with pytest.raises(LimitExceeded):
            await parts.appends.append(NAME, Append(1, 3, FinishReason.STOP, PRODUCER, b"x", STOP))
        assert not await parts.client.exists(parts.keys.feed(0))


async def test_a_full_redis_stores_neither_stream_nor_event(each_redis: RedisProcess, key_prefix: str) -> None:
    full = RedisProcess(each_redis.binary, {"maxmemory": "100kb"}).start()
    try:
        async with log_parts(full.url, key_prefix, partitions=1) as parts:
            with pytest.raises(RedisUnavailable, match="OOM"):
                await parts.appends.append(NAME, token(1, FinishReason.STOP))
            with pytest.raises(RedisUnavailable, match="OOM"):
                await parts.seal(NAME, CANCEL)
            assert await parts.client.keys() == []
    finally:
        full.close()


async def test_numbers_go_on_without_holes_whatever_was_trimmed(parts: LogParts) -> None:
    feed = parts.keys.feed(0)
    await parts.store(NAME, token(1, FinishReason.STOP))
    await parts.client.xtrim(feed, maxlen=0, approximate=False)
    await parts.store(StreamName("s", "m", "next"), token(1))
    assert await shorts(parts) == [(3, "next", 0, None, 0)]


async def test_a_clock_that_goes_back_keeps_the_ids_growing(parts: LogParts) -> None:
    feed = parts.keys.feed(0)
    future_ms = 4_000_000_000_000
    await parts.client.xadd(feed, {"k": "created 1", "s": "s:m:r"}, id=f"{future_ms}-7")
    await parts.store(NAME, token(1, FinishReason.STOP))
    later = (await events(parts))[1:]
    assert [event.n for event in later] == [8, 9]
    assert {event.entry.recorded_ms for event in later} == {future_ms}


async def test_what_is_older_than_the_retention_goes_a_little_at_a_time(parts: LogParts) -> None:
    feed = parts.keys.feed(0)
    for n in range(1, 41):
        await parts.client.xadd(feed, {"k": "created 1", "s": "s:m:old"}, id=f"1000-{n}")
    await parts.store(NAME, token(1))
    assert [event.n for event in await events(parts)] == [*range(17, 41), 41]
    await parts.seal(NAME, CANCEL)
    assert [event.n for event in await events(parts)] == [*range(33, 41), 41, 42]
    await parts.store(StreamName("s", "m", "next"), token(1))
    assert [event.n for event in await events(parts)] == [41, 42, 43]


async def test_the_feed_lives_as_long_as_the_longest_lived_stream(parts: LogParts) -> None:
    feed = parts.keys.feed(0)
    await parts.streams.create(NAME, 1_000, None, DAY_MS)
    assert await parts.client.pttl(feed) > DAY_MS
    await parts.streams.create(StreamName("s", "m", "long"), 3 * DAY_MS, None, DAY_MS)
    assert await parts.client.pttl(feed) > 3 * DAY_MS
    await parts.seal(NAME, CANCEL)
    assert await parts.client.pttl(feed) > 3 * DAY_MS - 60_000


async def test_events_ring_the_feeds_channel(parts: LogParts) -> None:
    async with parts.client.pubsub() as listening:
        await listening.subscribe(parts.keys.feed(0))
        await parts.store(NAME, token(1))
        await parts.store(NAME, token(2))
        await parts.store(NAME, token(3, FinishReason.STOP))
        # Something after them on the same connection, to know that nothing else came before it.
        await parts.client.publish(parts.keys.feed(0), "end")
        heard: list[bytes] = []
        while not heard or heard[-1] != b"end":
            message = await listening.get_message(ignore_subscribe_messages=True, timeout=5)
            if message is not None:
                heard.append(message["data"])
    assert heard == [b"", b"", b"end"]


async def test_a_group_stands_just_before_the_oldest_event_when_it_is_made(parts: LogParts) -> None:
    place = feed_group(parts)
    assert await parts.groups.join(place, GROUP, History.IGNORE) is None
    await parts.client.xadd(place.log, {"k": "created 1", "s": "s:m:old"}, id="1000-5")
    await parts.groups.join(place, GROUP, History.IGNORE)
    share = await parts.groups.read(place, "a", 10, ())
    assert (share.delivered, [entry_id for entry_id, _ in share.entries]) == (b"1000-4", [b"1000-5"])
    # Joining again does not move it.
    await parts.groups.join(place, GROUP, History.IGNORE)
    assert (await parts.groups.read(place, "a", 10, ())).delivered == b"1000-5"


async def test_a_group_of_an_emptied_feed_gets_what_comes_next(parts: LogParts) -> None:
    place = feed_group(parts)
    await parts.store(NAME, token(1))
    await parts.client.xtrim(place.log, maxlen=0, approximate=False)
    await parts.groups.join(place, GROUP, History.IGNORE)
    await parts.seal(NAME, CANCEL)
    share = await parts.groups.read(place, "a", 10, ())
    assert [number_of(entry_id) for entry_id, _ in share.entries] == [number_of(share.delivered) + 1] == [2]


async def test_feeds_of_other_makes_are_told_apart() -> None:
    good = (b"5-1", [b"k", b"created 7", b"s", b"s:m:"])
    assert LifecycleEntry.parse(*good).stream == StreamName("s", "m", "")
    for fields in (
        [b"k", b"created 7"],
        [b"s", b"s:m:"],
        [b"k", b"created", b"s", b"s:m:"],
        [b"k", b"created x", b"s", b"s:m:"],
        [b"k", b"renamed 7", b"s", b"s:m:"],
        [b"k", b"created 7", b"s", b"s:m"],
        [b"k", b"created 7", b"s", b"\xff:m:"],
        [b"k", b"completed 7 1 00000000 nobody", b"s", b"s:m:", b"b", b""],
        [b"k", b"completed 7 1 0000 lost", b"s", b"s:m:", b"b", b""],
        [b"k"],
    ):
        with pytest.raises(ValueError):
            LifecycleEntry.parse(b"5-1", fields)


async def test_the_feed_tells_whether_it_has_begun(parts: LogParts) -> None:
    place = feed_group(parts)
    feed = FeedLog(parts.groups._commands)
    assert (await feed.begun(place), await feed.group_settings(place)) == (False, None)
    await parts.store(NAME, token(1))
    assert (await feed.begun(place), await feed.group_settings(place)) == (True, None)
    await parts.groups.join(place, GroupSettings(1_000, 0), History.IGNORE)
    assert await feed.group_settings(place) == GroupSettings(1_000, 5)
