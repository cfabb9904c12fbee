"""docs/protocol.md, "When history is gone", and "Trimming and expiry"."""

import asyncio
from collections.abc import Iterator

import pytest
import redis

from llmbridge.v1.bridge_service_pb2 import POSITION_EARLIEST
from llmbridge.v1.stream_admin_service_pb2 import ListStreamsRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.conformance.caller import STOP, Caller, new_stream, refused
from tests.conformance.target import Instance, Snapshot

EXPIRED = ("OUT_OF_RANGE", "EXPIRED", {"earliest_cursor": ""})


@pytest.fixture
def redis_of_target(instances: tuple[Instance, Instance | None]) -> Iterator["redis.Redis"]:
    url = instances[0].redis_url
    if url is None:
        pytest.skip("the Redis of the target is not given: give --target-redis")
    with redis.Redis.from_url(url, socket_timeout=5) as client:
        yield client


async def one_by_one(bridge: Caller, stream: StreamRef, texts: str, first: int = 1) -> list[str]:
    """Store each text as an entry of its own; returns the cursors."""
    return [(await bridge.produce(stream, text, first=first + i)).cursor for i, text in enumerate(texts)]


async def resume(bridge: Caller, stream: StreamRef, cursor: str) -> tuple[str, str, str]:
    """Resume from a cursor that must be refused; returns status, reason and earliest_cursor."""
    reader = await bridge.subscribe(stream, wait=False, after_cursor=cursor)
    refusal = await reader.refused()
    assert reader.messages == 0
    assert set(refusal.metadata) == {"earliest_cursor"}
    return refusal.code, refusal.reason, refusal.metadata["earliest_cursor"]


async def read(bridge: Caller, stream: StreamRef, cursor: str, last: int, through: int) -> str:
    """Read from a cursor after record `last`."""
    reader = await (await bridge.subscribe(stream, last=last, after_cursor=cursor)).through(through)
    await reader.leave()
    return reader.text


class TestTrimmed:
    async def test_the_next_records_were_trimmed_away(self, bridge: Caller, stream: StreamRef) -> None:
        cursors = await one_by_one(bridge, stream, "abcdef")
        await bridge.trim(stream, through_cursor=cursors[3])
        for cursor in cursors[:3]:
            code, reason, earliest = await resume(bridge, stream, cursor)
            assert (code, reason) == ("OUT_OF_RANGE", "TRIMMED")
            assert await read(bridge, stream, earliest, 4, 6) == "ef"

    async def test_right_before_what_is_left_nothing_is_missing(self, bridge: Caller, stream: StreamRef) -> None:
        cursors = await one_by_one(bridge, stream, "abcdef")
        await bridge.trim(stream, through_cursor=cursors[3])
        assert await read(bridge, stream, cursors[3], 4, 6) == "ef"

    async def test_in_the_middle_of_a_call(self, bridge: Caller, second: Caller, stream: StreamRef) -> None:
        texts = bridge.more_than_fits()
        held_up = await bridge.subscribe(stream)
        for i, text in enumerate(texts):
            await second.produce(stream, text, first=i + 1)
        await second.trim(stream, keep_tokens=1)
        refusal = await held_up.refused()
        assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "TRIMMED")
        # What it had got is the beginning, with no hole.
        assert held_up.texts == texts[: len(held_up.texts)]
        count = len(texts)
        assert len(held_up.texts) < count - 1
        assert await read(bridge, stream, refusal.metadata["earliest_cursor"], count - 1, count) == texts[-1]


class TestExpired:
    async def test_it_was_deleted(self, bridge: Caller, second: Caller, stream: StreamRef) -> None:
        cursors = await one_by_one(bridge, stream, "ab")
        readers = [await (await caller.subscribe(stream)).through(2) for caller in (bridge, second)]
        await second.delete(stream)
        for reader in readers:
            assert (await reader.refused()).short == EXPIRED
        assert await resume(bridge, stream, cursors[0]) == ("OUT_OF_RANGE", "EXPIRED", "")
        assert (await refused(bridge.info(stream))).reason == "STREAM_NOT_FOUND"
        # The empty cursor means the beginning, should a stream of that name be created again.
        again = await bridge.subscribe(stream, after_cursor="")
        await bridge.produce(stream, "new", first=1, end=STOP)
        assert (await again.to_the_end()).text == "new"

    async def test_redis_lost_it(self, bridge: Caller, redis_of_target: "redis.Redis", stream: StreamRef) -> None:
        [cursor] = await one_by_one(bridge, stream, "a")
        reader = await (await bridge.subscribe(stream)).through(1)
        Snapshot.lose(redis_of_target, stream.session_id)
        assert (await reader.refused()).short == EXPIRED
        assert await resume(bridge, stream, cursor) == ("OUT_OF_RANGE", "EXPIRED", "")
        told = await refused(bridge.produce(stream, "b", first=2))
        assert told.short == ("ABORTED", "SEQUENCE_GAP", {"expected": "1", "received": "2"})


class TestRestarted:
    @pytest.mark.parametrize("texts", ["x", "xy", "xyz"], ids=["shorter", "as long", "longer"])
    async def test_it_was_deleted_and_a_new_one_has_its_name(
        self, bridge: Caller, second: Caller, stream: StreamRef, texts: str
    ) -> None:
        cursors = await one_by_one(bridge, stream, "ab")
        await bridge.delete(stream)
        await one_by_one(second, stream, texts)
        for cursor in cursors:
            code, reason, earliest = await resume(bridge, stream, cursor)
            assert (code, reason) == ("OUT_OF_RANGE", "RESTARTED")
            assert await read(bridge, stream, earliest, 0, len(texts)) == texts


@pytest.mark.parametrize("attached", [False, True], ids=["resumed", "in the middle of a call"])
class TestRedisLostItsTail:
    async def test_lost__the_log_ends_before_the_cursor(
        self, bridge: Caller, redis_of_target: "redis.Redis", stream: StreamRef, attached: bool
    ) -> None:
        cursors = await one_by_one(bridge, stream, "ab")
        snapshot = Snapshot.take(redis_of_target, stream.session_id)
        cursors += await one_by_one(bridge, stream, "cd", first=3)
        reader = await (await bridge.subscribe(stream)).through(4)
        snapshot.restore()
        if attached:
            refusal = await reader.refused()
            assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "LOST")
            earliest = refusal.metadata["earliest_cursor"]
        else:
            await reader.leave()
            code, reason, earliest = await resume(bridge, stream, cursors[3])
            assert (code, reason) == ("OUT_OF_RANGE", "LOST")
        assert await read(bridge, stream, earliest, 0, 2) == "ab"
        # Who had not got further goes on; the producer is told where to.
        told = await refused(bridge.produce(stream, "e", first=5))
        assert told.metadata == {"expected": "3", "received": "5"}
        await one_by_one(bridge, stream, "cd", first=3)
        assert await read(bridge, stream, cursors[1], 2, 4) == "cd"

    @pytest.mark.parametrize("length", [2, 3], ids=["as long", "longer"])
    async def test_rewritten__the_log_has_another_record_at_the_cursor(
        self, bridge: Caller, redis_of_target: "redis.Redis", stream: StreamRef, attached: bool, length: int
    ) -> None:
        await one_by_one(bridge, stream, "ab")
        snapshot = Snapshot.take(redis_of_target, stream.session_id)
        cursors = await one_by_one(bridge, stream, "cd", first=3)
        reader = await (await bridge.subscribe(stream)).through(4)
        # While Redis is away nobody reads: to a reader both happen at once.
        snapshot.restore()
        await one_by_one(bridge, stream, "xyz"[:length], first=3)
        if attached:
            refusal = await reader.refused()
            # One that looks in between finds the tail lost.
            assert refusal.code == "OUT_OF_RANGE"
            assert refusal.reason in ("REWRITTEN", "LOST")
            assert reader.text == "abcd"
            earliest = refusal.metadata["earliest_cursor"]
        else:
            await reader.leave()
            code, reason, earliest = await resume(bridge, stream, cursors[1])
            assert (code, reason) == ("OUT_OF_RANGE", "REWRITTEN")
        assert await read(bridge, stream, earliest, 0, 2 + length) == "ab" + "xyz"[:length]


class TestTrimmingAndExpiry:
    async def test_a_stream_expires_as_a_whole_when_nothing_was_appended_for_its_retention__readers_get_expired(
        self, bridge: Caller
    ) -> None:
        silent, busy = new_stream(), new_stream()
        for stream in (busy, silent):
            await bridge.create(stream, retention_ms=2_000)
            cursors = await one_by_one(bridge, stream, "ab")
        reader = await (await bridge.subscribe(silent)).through(2)
        sequence = 2
        async with asyncio.timeout(15):
            while True:
                sequence += 1
                await bridge.produce(busy, "c", first=sequence)
                left = (await bridge.call(ListStreamsRequest(session_id=silent.session_id))).streams
                if not left:
                    break
                assert (left[0].first_sequence, left[0].last_sequence) == (1, 2), "not piece by piece"
                await asyncio.sleep(0.1)
        assert (await refused(bridge.info(silent))).reason == "STREAM_NOT_FOUND"
        assert (await reader.refused()).short == EXPIRED
        assert await resume(bridge, silent, cursors[0]) == ("OUT_OF_RANGE", "EXPIRED", "")
        assert (await bridge.info(busy)).first_sequence == 1

    async def test_create_stream_can_set_the_retention_for_one_stream(self, bridge: Caller) -> None:
        usual, longer = new_stream(), new_stream()
        for stream, retention_ms in ((usual, 0), (longer, 40 * 3_600_000)):
            await bridge.create(stream, retention_ms=retention_ms)
            await bridge.produce(stream, "a", first=1)
        # Where it is long, a bridge may keep a stream for a minute more.
        assert 39 * 3_600_000 < (await bridge.info(longer)).time_to_live_ms <= 40 * 3_600_000 + 60_000
        usual_ms = bridge.instance.settings.get("REDIS_STREAM_RETENTION_MS")
        if usual_ms is None and bridge.instance.process is None:
            pytest.skip("REDIS_STREAM_RETENTION_MS of the target is not known")
        limit = int(usual_ms or 86_400_000)
        assert limit - 60_000 < (await bridge.info(usual)).time_to_live_ms <= limit + 60_000

    async def test_a_length_limit_counts_tokens_and_drops_the_oldest_whole_entries_with_every_append(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        await bridge.create(stream, max_length=4)
        sequence = 1
        for texts in ("ab", "c", "def", "g", "hi", "jklmno", "p"):
            answer = await bridge.produce(stream, *texts, first=sequence)
            sequence += len(texts)
            info = await bridge.info(stream)
            kept = answer.last_sequence - info.first_sequence + 1
            # Up to one entry more than the limit may be kept; the last one always stays.
            assert min(4, answer.last_sequence) <= kept < 4 + 6
            assert info.last_sequence == answer.last_sequence
        reader = await bridge.subscribe(stream, last=info.first_sequence - 1, position=POSITION_EARLIEST)
        assert (await reader.through(16)).text == "abcdefghijklmnop"[info.first_sequence - 1 :]

    async def test_trim_stream_does_the_same_on_request(self, bridge: Caller, stream: StreamRef) -> None:
        for first, texts in ((1, "ab"), (3, "cde"), (6, "f")):
            await bridge.produce(stream, *texts, first=first)
        # Whole entries only: c stays with d and e.
        kept = await bridge.trim(stream, keep_tokens=2)
        assert (kept.first_sequence, kept.entries_dropped) == (3, 1)
        again = await bridge.trim(stream, keep_tokens=2)
        assert (again.first_sequence, again.entries_dropped) == (3, 0)
        assert (await bridge.trim(stream, keep_tokens=1)).first_sequence == 6
        end = await bridge.info(stream)
        # The last entry always stays.
        assert (await bridge.trim(stream, through_cursor=end.cursor)).first_sequence == 6
        reader = await bridge.subscribe(stream, last=5, position=POSITION_EARLIEST)
        assert (await reader.through(6)).text == "f"

    async def test_trimming_through_a_cursor_of_another_stream_is_out_of_range(
        self, bridge: Caller, stream: StreamRef
    ) -> None:
        [cursor] = await one_by_one(bridge, stream, "a")
        await bridge.delete(stream)
        await one_by_one(bridge, stream, "xy")
        refusal = await refused(bridge.trim(stream, through_cursor=cursor))
        assert (refusal.code, refusal.reason) == ("OUT_OF_RANGE", "RESTARTED")
