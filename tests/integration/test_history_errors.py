"""History that is gone is an explicit error with a cursor that works, for readers that attach and for attached ones."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from llmbridge.v1.bridge_service_pb2 import POSITION_BEGINNING, POSITION_EARLIEST, SubscribeRequest
from llmbridge.v1.connection_service_pb2 import CONNECTION_STATE_HELD, ListConnectionsRequest
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, DeleteStreamRequest, TrimStreamRequest
from tests.support.calls import (
    PATIENCE_SECONDS,
    STOP,
    Failure,
    Received,
    attached,
    failure,
    produce,
    ref,
    stalled_channel,
    stub,
)
from tests.support.log_surgery import LogSurgery
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

STREAM = ref("r")
GONE = grpc.StatusCode.OUT_OF_RANGE
EXPIRED = (GONE, "EXPIRED", {"earliest_cursor": ""})
BEFORE_ALL = "{}-0-00000000"


@pytest.fixture
def log(shared_redis: RedisProcess, key_prefix: str) -> Iterator[LogSurgery]:
    with shared_redis.client() as client:
        yield LogSurgery(client, key_prefix, STREAM)


async def one_by_one(bridge: RunningBridge, *texts: str, first: int = 1) -> list[str]:
    """Store each text as an entry of its own; returns the cursors."""
    return [(await produce(bridge.bridge, STREAM, text, first=first + i)).cursor for i, text in enumerate(texts)]


async def resume(bridge: RunningBridge, cursor: str) -> Failure:
    return await failure(Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=cursor))))


async def until_held_up(bridge: RunningBridge) -> None:
    """Wait until a reader has taken nothing for a while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await bridge.connections.ListConnections(ListConnectionsRequest())
            if any(one.state == CONNECTION_STATE_HELD for one in answer.connections):
                return
            await asyncio.sleep(0.01)


async def read_after(bridge: RunningBridge, cursor: str, through: int) -> list[str]:
    """Read from an `earliest_cursor` to record `through`; the sequences must go on from the cursor's."""
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=cursor))
    reader = await Received(last=int(cursor.split("-")[1]), cursor=cursor).read(call, through)
    call.cancel()
    return reader.texts


class TestTrimmed:
    async def test_beginning_of_a_trimmed_stream(self, bridge: RunningBridge) -> None:
        await one_by_one(bridge, "a", "b", "c", "d")
        await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=2))
        failed = await failure(Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM))))
        assert (failed.code, failed.reason) == (GONE, "TRIMMED")
        assert await read_after(bridge, failed.metadata["earliest_cursor"], 4) == ["c", "d"]

    async def test_a_cursor_before_what_is_left(self, bridge: RunningBridge) -> None:
        cursors = await one_by_one(bridge, "a", "b", "c", "d")
        await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, through_cursor=cursors[2]))
        for cursor in cursors[:2]:
            failed = await resume(bridge, cursor)
            assert (failed.code, failed.reason) == (GONE, "TRIMMED")
            assert await read_after(bridge, failed.metadata["earliest_cursor"], 4) == ["d"]

    async def test_a_cursor_right_before_what_is_left_goes_on(self, bridge: RunningBridge) -> None:
        cursors = await one_by_one(bridge, "a", "b", "c", "d")
        await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, through_cursor=cursors[2]))
        assert await read_after(bridge, cursors[2], 4) == ["d"]

    async def test_an_attached_reader_that_is_held_up(self, bridge: RunningBridge) -> None:
        texts = [f"{i:06d}" * 5_000 for i in range(40)]
        async with stalled_channel(bridge.address) as channel:
            call = await attached(stub(channel), SubscribeRequest(stream=STREAM))
            await one_by_one(bridge, *texts)
            await until_held_up(bridge)
            await bridge.admin.TrimStream(TrimStreamRequest(stream=STREAM, keep_tokens=1))
            reader = Received()
            failed = await failure(reader.read(call))
        assert (failed.code, failed.reason) == (GONE, "TRIMMED")
        assert reader.texts == texts[: len(reader.texts)]
        assert len(reader.texts) < 39
        assert await read_after(bridge, failed.metadata["earliest_cursor"], 40) == texts[39:]


class TestExpired:
    async def test_a_cursor_of_a_deleted_stream(self, bridge: RunningBridge) -> None:
        [cursor] = await one_by_one(bridge, "a")
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
        assert (await resume(bridge, cursor)).short == EXPIRED

    async def test_deleting_an_open_stream_ends_its_readers(self, bridge: RunningBridge) -> None:
        await one_by_one(bridge, "a", "b")
        calls = [await attached(bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(3)]
        readers = [await Received().read(call, through=2) for call in calls]
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
        for call, reader in zip(calls, readers, strict=True):
            assert (await failure(reader.read(call))).short == EXPIRED
        gap = await failure(produce(bridge.bridge, STREAM, "c", first=3))
        assert gap.short == (grpc.StatusCode.ABORTED, "SEQUENCE_GAP", {"expected": "1", "received": "3"})

    async def test_deleting_an_empty_stream_ends_its_readers(self, bridge: RunningBridge) -> None:
        await bridge.admin.CreateStream(CreateStreamRequest(stream=STREAM))
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
        assert (await failure(Received().read(call))).short == EXPIRED

    async def test_expiry_which_wakes_nobody_is_found_by_the_safety_poll(
        self, bridge: RunningBridge, log: LogSurgery
    ) -> None:
        await one_by_one(bridge, "a")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=1)
        log.client.pexpire(log.key, 1)
        assert (await failure(reader.read(call))).short == EXPIRED

    async def test_an_empty_earliest_cursor_reads_what_comes_then(self, bridge: RunningBridge) -> None:
        [cursor] = await one_by_one(bridge, "a")
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
        earliest = (await resume(bridge, cursor)).metadata["earliest_cursor"]
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM, after_cursor=earliest))
        await produce(bridge.bridge, STREAM, "new", first=1, completion=STOP)
        assert (await Received().read(call)).texts == ["new"]


class TestRestarted:
    async def test_a_cursor_of_the_stream_before(self, bridge: RunningBridge, log: LogSurgery) -> None:
        cursors = await one_by_one(bridge, "a", "b")
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=STREAM))
        await one_by_one(bridge, "x", "y", "z")
        for cursor in cursors:
            failed = await resume(bridge, cursor)
            assert failed.short == (GONE, "RESTARTED", {"earliest_cursor": BEFORE_ALL.format(log.incarnation)})
            assert await read_after(bridge, failed.metadata["earliest_cursor"], 3) == ["x", "y", "z"]

    @pytest.mark.parametrize("clock", [-1_000_000, -1, 1])
    async def test_created_anew_while_clocks_differ(self, bridge: RunningBridge, log: LogSurgery, clock: int) -> None:
        cursors = await one_by_one(bridge, "a", "b")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=2)
        other = log.incarnation + clock
        log.rewrite(other, ["x"], ["y"], ["z"])
        expected = (GONE, "RESTARTED", {"earliest_cursor": BEFORE_ALL.format(other)})
        assert (await resume(bridge, cursors[1])).short == expected
        log.wake()
        assert (await failure(reader.read(call))).short == expected
        assert await read_after(bridge, expected[2]["earliest_cursor"], 3) == ["x", "y", "z"]

    @pytest.mark.parametrize(
        ("entries", "reason"),
        [([["x"]], "LOST"), ([["x"], ["y"]], "REWRITTEN"), ([["x", "y", "z"]], "REWRITTEN")],
        ids=["shorter", "as long", "longer"],
    )
    async def test_created_anew_in_the_same_microsecond(
        self, bridge: RunningBridge, log: LogSurgery, entries: list[list[str]], reason: str
    ) -> None:
        cursors = await one_by_one(bridge, "a", "b")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=2)
        log.rewrite(log.incarnation, *entries)
        expected = (GONE, reason, {"earliest_cursor": BEFORE_ALL.format(log.incarnation)})
        assert (await resume(bridge, cursors[1])).short == expected
        log.wake()
        assert (await failure(reader.read(call))).short == expected
        texts = [text for entry in entries for text in entry]
        assert await read_after(bridge, expected[2]["earliest_cursor"], len(texts)) == texts

    async def test_who_subscribes_after_a_delete_sees_nothing_of_what_was_deleted(
        self, bridge: RunningBridge, log: LogSurgery
    ) -> None:
        await one_by_one(bridge, "old")
        old = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        await Received().read(old, through=1)
        # Wakes nobody, as if the wake-ups were lost.
        log.rewrite(log.incarnation + 1, ["new"])
        for position in (POSITION_BEGINNING, POSITION_EARLIEST):
            call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, position=position))
            assert (await Received().read(call, through=1)).texts == ["new"]
            call.cancel()


class TestLostTail:
    async def test_a_cursor_behind_the_end(self, bridge: RunningBridge, log: LogSurgery) -> None:
        cursors = await one_by_one(bridge, "a", "b", "c")
        log.lose_tail(keep=2)
        failed = await resume(bridge, cursors[2])
        assert failed.short == (GONE, "LOST", {"earliest_cursor": BEFORE_ALL.format(log.incarnation)})
        assert await read_after(bridge, failed.metadata["earliest_cursor"], 2) == ["a", "b"]
        await produce(bridge.bridge, STREAM, "c2", first=3, completion=STOP)
        assert await read_after(bridge, cursors[1], 4) == ["c2"]

    async def test_regrown_with_the_same_last_entry(self, bridge: RunningBridge, log: LogSurgery) -> None:
        """Single tokens are often alike: the one at the cursor does not vouch for those before it."""
        cursors = await one_by_one(bridge, "The", " dog", ",")
        log.lose_tail(keep=1)
        await one_by_one(bridge, " cat", ",", " it", first=2)
        assert (await resume(bridge, cursors[2])).short[:2] == (GONE, "REWRITTEN")
        assert await read_after(bridge, cursors[0], 4) == [" cat", ",", " it"]

    async def test_a_live_reader(self, bridge: RunningBridge, log: LogSurgery) -> None:
        await one_by_one(bridge, "a", "b", "c")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=3)
        log.lose_tail(keep=1)
        log.wake()
        assert (await failure(reader.read(call))).short[:2] == (GONE, "LOST")

    @pytest.mark.parametrize("regrown", [["B"], ["B", "C"], ["B", "C", "D"]], ids=["shorter", "as long", "longer"])
    async def test_a_live_reader_when_the_log_has_regrown_differently(
        self, bridge: RunningBridge, log: LogSurgery, regrown: list[str]
    ) -> None:
        cursors = await one_by_one(bridge, "a", "b", "c")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=3)
        log.rewrite(log.incarnation, *([text] for text in regrown), after=1)
        reason = "LOST" if len(regrown) == 1 else "REWRITTEN"
        failed = await resume(bridge, cursors[2])
        assert failed.short[:2] == (GONE, reason)
        assert await read_after(bridge, failed.metadata["earliest_cursor"], 1 + len(regrown)) == ["a", *regrown]
        log.wake()
        assert (await failure(reader.read(call))).short[:2] == (GONE, reason)
        assert reader.texts == ["a", "b", "c"]

    async def test_nobody_notices_when_it_regrew_as_it_was(self, bridge: RunningBridge, log: LogSurgery) -> None:
        await one_by_one(bridge, "a", "b", "c")
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=3)
        log.rewrite(log.incarnation, ["b"], ["c"], after=1)
        await produce(bridge.bridge, STREAM, "d", first=4, completion=STOP)
        assert (await reader.read(call)).texts == ["a", "b", "c", "d"]

    async def test_a_reader_that_was_held_up_while_others_follow_the_regrown_log(
        self, bridge: RunningBridge, log: LogSurgery
    ) -> None:
        texts = [f"{i:06d}" * 1_000 for i in range(120)]
        async with stalled_channel(bridge.address) as channel:
            held_up = await attached(stub(channel), SubscribeRequest(stream=STREAM))
            await one_by_one(bridge, *texts)
            await until_held_up(bridge)
            log.lose_tail(keep=1)
            log.wake()
            follower = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
            await Received().read(follower, through=1)
            await one_by_one(bridge, *(f"other {i}" for i in range(150)), first=2)
            reader = Received()
            failed = await failure(reader.read(held_up))
            follower.cancel()
        assert failed.short[:2] == (GONE, "REWRITTEN")
        assert reader.texts == texts[: len(reader.texts)]
