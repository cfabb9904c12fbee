"""TrimStream: how far it goes, what it refuses, and what readers then get."""

import grpc
import pytest

from llmbridge.errors import StreamNotFound
from llmbridge.model.cursor import Cursor
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import TrimStreamRequest
from tests.support.append_cases import request
from tests.support.calls import Received, failure, produce, ref
from tests.support.log_parts import log_parts
from tests.support.model_log import Create
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

NAME = StreamName("s", "m", "r")


async def test_whole_entries_are_dropped_and_the_last_one_stays(each_redis: RedisProcess, key_prefix: str) -> None:
    async with log_parts(each_redis.url, key_prefix) as parts:
        with pytest.raises(StreamNotFound):
            await parts.streams.trim(NAME, 1, None)
        await parts.store(NAME, Create())
        assert await parts.streams.trim(NAME, 1, None) == (1, 0)
        for text in ("ab", "c", "def"):
            await parts.store(NAME, request(0, text))
        assert await parts.streams.trim(NAME, 9, None) == (1, 0)
        assert await parts.streams.trim(NAME, 6, None) == (1, 0)
        assert await parts.streams.trim(NAME, 5, None) == (1, 0), "half an entry can't be dropped"
        assert await parts.streams.trim(NAME, 4, None) == (3, 1)
        assert await parts.streams.trim(NAME, 4, None) == (3, 0), "idempotent"
        await parts.store(NAME, request(0, finish=FinishReason.STOP))
        assert await parts.streams.trim(NAME, 3, None) == (4, 1)
        assert await parts.streams.trim(NAME, 1, None) == (4, 0)
        state = await parts.streams.inspect(NAME)
        assert state is not None
        through_end = Cursor.parse(state.cursor)
        assert await parts.streams.trim(NAME, 0, through_end) == (7, 1), "the last entry stays"
        assert await parts.streams.trim(NAME, 0, through_end) == (7, 0)


async def test_trimming_by_cursor(bridge: RunningBridge) -> None:
    stream = ref("trimmed")
    cursors = [(await produce(bridge.bridge, stream, *text)).cursor for text in ("ab", "c", "def")]
    incarnation, _, checksum = cursors[0].split("-")

    async def trim(cursor: str) -> tuple[int, int]:
        done = await bridge.admin.TrimStream(TrimStreamRequest(stream=stream, through_cursor=cursor))
        return done.first_sequence, done.entries_dropped

    assert await trim(f"{incarnation}-0-00000000") == (1, 0)
    assert await trim(f"{incarnation}-1-{checksum}") == (1, 0), "half an entry can't be dropped"
    for cursor, reason in (
        (f"{int(incarnation) - 1}-2-{checksum}", "RESTARTED"),
        (f"{incarnation}-7-{checksum}", "LOST"),
        (f"{incarnation}-3-{checksum}", "REWRITTEN"),
        (f"{incarnation}-5-{checksum}", "REWRITTEN"),
    ):
        failed = await failure(trim(cursor))
        assert failed.short == (
            grpc.StatusCode.OUT_OF_RANGE,
            reason,
            {"earliest_cursor": f"{incarnation}-0-00000000"},
        )
    assert await trim(cursors[0]) == (3, 1)
    assert await trim(cursors[0]) == (3, 0), "idempotent"
    late = await failure(bridge.bridge.Subscribe(SubscribeRequest(stream=stream)).read())
    assert late.reason == "TRIMMED"
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=stream, after_cursor=late.metadata["earliest_cursor"]))
    assert (await Received(last=2).read(call, through=6)).text == "cdef"
    call.cancel()
    assert await trim(cursors[2]) == (4, 1), "the last entry stays"
    assert await trim(f"{incarnation}-4-00000000") == (4, 0)


@pytest.mark.parametrize(
    ("until", "field"),
    [({}, "until"), ({"keep_tokens": 0}, "until"), ({"keep_tokens": 2**53}, "until"), ({"through_cursor": ""}, None)],
)
async def test_a_trim_must_say_how_far(bridge: RunningBridge, until: dict[str, int | str], field: str | None) -> None:
    stream = ref("untouched")
    await produce(bridge.bridge, stream, "a", "b")
    failed = await failure(bridge.admin.TrimStream(TrimStreamRequest(stream=stream, **until)))  # type: ignore[arg-type]
    assert failed.short == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        {"field": field or "through_cursor"},
    )
