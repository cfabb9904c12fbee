"""StreamAdminService: create, inspect, delete, and listings page by page."""

import asyncio
import base64
import json

import grpc
import pytest
import redis.asyncio

from llmbridge.log.keys import Keys
from llmbridge.log.partitions import PartitionMismatch
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import CancelRequest, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import (
    CreateStreamRequest,
    CreateStreamResponse,
    DeleteStreamRequest,
    GetStreamRequest,
    ListStreamsRequest,
)
from llmbridge.v1.stream_pb2 import SEALER_PRODUCER, STREAM_STATE_OPEN, STREAM_STATE_SEALED, StreamInfo, StreamRef
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP
from tests.support.calls import STOP, attached, failure, produce, read_all, ref
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

DAY_MS = 86_400_000
NASTY_NAMES = [
    *((a, b, "") for a in ("s", "s:m", "s%3Am") for b in ("m", ":m", "m:", "m%")),
    ("s", "m:", "r"),
    ("s", "m", ":r"),
    ("s:m", "", "r"),
    ("{s}", "{0}", "}{"),
    ("%7Bs%7D", "{0}", "}{"),
    (" ", "  ", " "),
    ("*", "?[a]", "\\"),
    ("/", "../..", "//"),
    ("é", "日本", "🙂"),
    ("e\u0301", "日本", "🙂"),
    ("S", "M", ""),
    ("+", "a b", "a+b"),
    ("-", "(", "["),
]


async def _create(bridge: RunningBridge, stream: StreamRef, **fields: int) -> CreateStreamResponse:
    made: CreateStreamResponse = await bridge.admin.CreateStream(CreateStreamRequest(stream=stream, **fields))
    return made


async def _info(bridge: RunningBridge, stream: StreamRef) -> StreamInfo:
    info: StreamInfo = (await bridge.admin.GetStream(GetStreamRequest(stream=stream))).info
    return info


async def _listed(bridge: RunningBridge, page_size: int, **scope: str | bool) -> list[StreamInfo]:
    """List to the end; no page may be larger than asked for."""
    found: list[StreamInfo] = []
    token = ""
    async with asyncio.timeout(20):
        while True:
            request = ListStreamsRequest(page_size=page_size, page_token=token, **scope)  # type: ignore[arg-type]
            page = await bridge.admin.ListStreams(request)
            assert len(page.streams) <= (page_size or 100)
            found += page.streams
            token = page.next_page_token
            if not token:
                return found


def _names(infos: list[StreamInfo]) -> list[tuple[str, str, str]]:
    return [(info.stream.session_id, info.stream.model_id, info.stream.response_id) for info in infos]


async def test_a_created_stream_is_there_and_empty(bridge: RunningBridge) -> None:
    made = await _create(bridge, ref("r"), retention_ms=5_000, max_length=2)
    assert made.stream == ref("r")
    info = await _info(bridge, ref("r"))
    assert 0 < info.time_to_live_ms <= 5_000
    assert info.bytes > 0
    info.time_to_live_ms = info.bytes = 0
    assert info == StreamInfo(
        stream=ref("r"),
        state=STREAM_STATE_OPEN,
        first_sequence=1,
        created_ms=made.created_ms,
        appended_ms=made.created_ms,
    )


async def test_each_call_without_a_response_id_makes_another_stream(bridge: RunningBridge) -> None:
    made = [await _create(bridge, ref("")) for _ in range(3)]
    ids = {answer.stream.response_id for answer in made}
    assert len(ids) == 3
    assert "" not in ids
    assert {(answer.stream.session_id, answer.stream.model_id) for answer in made} == {("s", "m")}


async def test_what_exists_is_not_created_again(bridge: RunningBridge) -> None:
    await produce(bridge.bridge, ref("r"), "a", first=1)
    before = await _info(bridge, ref("r"))
    for _ in range(2):
        failed = await failure(_create(bridge, ref("r"), retention_ms=5_000))
        assert failed.short == (
            grpc.StatusCode.ALREADY_EXISTS,
            "STREAM_EXISTS",
            {"session_id": "s", "model_id": "m", "response_id": "r"},
        )
    after = await _info(bridge, ref("r"))
    assert after.time_to_live_ms > DAY_MS - 60_000
    after.time_to_live_ms = before.time_to_live_ms
    assert after == before


@pytest.mark.parametrize(
    ("fields", "code", "metadata"),
    [
        ({"retention_ms": 999}, grpc.StatusCode.INVALID_ARGUMENT, {"field": "retention_ms"}),
        ({"retention_ms": -1}, grpc.StatusCode.INVALID_ARGUMENT, {"field": "retention_ms"}),
        ({"max_length": 2**53}, grpc.StatusCode.INVALID_ARGUMENT, {"field": "max_length"}),
        (
            {"retention_ms": 31 * DAY_MS},
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            {"limit": "max_retention_ms", "maximum": str(30 * DAY_MS), "value": str(31 * DAY_MS)},
        ),
    ],
)
async def test_what_can_not_be_created(
    bridge: RunningBridge, fields: dict[str, int], code: grpc.StatusCode, metadata: dict[str, str]
) -> None:
    failed = await failure(_create(bridge, ref("r"), **fields))
    assert (failed.code, failed.metadata) == (code, metadata)
    assert (await failure(_info(bridge, ref("r")))).reason == "STREAM_NOT_FOUND"


async def test_a_streams_state_is_told_as_it_is(bridge: RunningBridge) -> None:
    stream = ref("r")
    await produce(bridge.bridge, stream, "a", "b", first=1, producer_epoch=7)
    done = await produce(bridge.bridge, stream, "c", first=3, producer_epoch=8, completion=STOP)
    info = await _info(bridge, stream)
    assert (info.state, info.finish_reason, info.sealer) == (STREAM_STATE_SEALED, FINISH_REASON_STOP, SEALER_PRODUCER)
    assert (info.first_sequence, info.last_sequence, info.producer_epoch, info.entries) == (1, 4, 8, 2)
    assert info.cursor == done.cursor
    assert 0 <= info.appended_ms - info.created_ms < 60_000
    absent = await failure(_info(bridge, ref("other")))
    assert absent.short == (
        grpc.StatusCode.NOT_FOUND,
        "STREAM_NOT_FOUND",
        {"session_id": "s", "model_id": "m", "response_id": "other"},
    )


@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 1_000, 0])
async def test_a_session_is_listed_newest_first(
    bridge: RunningBridge, shared_redis: RedisProcess, page_size: int
) -> None:
    for i in range(7):
        await produce(bridge.bridge, ref(str(i), model=f"m{i % 2}"), "a", first=1)
    await _create(bridge, ref("other", session="another"))
    expected = [("s", f"m{i % 2}", str(i)) for i in reversed(range(7))]
    assert _names(await _listed(bridge, page_size, session_id="s")) == expected
    # Some were created in the same microsecond, and one has expired without a trace.
    keys = Keys(bridge.settings.key_prefix, bridge.settings.partitions)
    async with redis.asyncio.Redis.from_url(shared_redis.url) as client:
        index = keys.stream(StreamName("s", "m")).session_index
        for i in (1, 2, 3, 4):
            member = keys.stream(StreamName("s", f"m{i % 2}", str(i))).session_member
            score = await client.zscore(index, keys.stream(StreamName("s", "m0", "2")).session_member)
            await client.zadd(index, {member: score or 0})
        await client.delete(keys.stream(StreamName("s", "m0", "6")).log)
    # Redis has members of one score in the order of their bytes; from the last on, since newest comes first.
    ties = sorted((("s", f"m{i % 2}", str(i)) for i in (1, 2, 3, 4)), reverse=True)
    assert _names(await _listed(bridge, page_size, session_id="s")) == [expected[1], *ties, expected[6]]


async def test_an_unknown_session_is_empty(bridge: RunningBridge) -> None:
    assert await _listed(bridge, 10, session_id="nobody") == []


@pytest.mark.parametrize("page_size", [1, 2, 5, 30, 1_000])
async def test_all_open_streams_are_listed_once_over_all_partitions(
    bridge: RunningBridge, shared_redis: RedisProcess, page_size: int
) -> None:
    streams = [ref(str(i % 3), session=f"s{i % 10}", model=f"m{i}") for i in range(30)]
    await asyncio.gather(*(produce(bridge.bridge, stream, "a", first=1) for stream in streams))
    await asyncio.gather(*(bridge.bridge.Cancel(CancelRequest(stream=stream)) for stream in streams[::3]))
    still_open = [stream for i, stream in enumerate(streams) if i % 3]
    # One that was sealed after the index was read.
    keys = Keys(bridge.settings.key_prefix, bridge.settings.partitions)
    sealed = keys.stream(StreamName("s0", "m0", "0"))
    with shared_redis.client() as client:
        client.zadd(sealed.open_index, {sealed.open_member: 0})
        client.pexpire(sealed.open_index, DAY_MS)
    found = await _listed(bridge, page_size, all_open=True)
    assert sorted(_names(found)) == sorted((s.session_id, s.model_id, s.response_id) for s in still_open)
    assert {info.state for info in found} == {STREAM_STATE_OPEN}


def _token(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


BAD_TOKENS = [
    "x",
    "é",
    "====",
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    _token("session", "other", 1, "m:r"),
    _token("open", "", 0, ""),
    _token("session", "s", -1, "m:r"),
    _token("session", "s", 2**53, "m:r"),
    _token("session", "s", 1.5, "m:r"),
    _token("session", "s", True, "m:r"),
    _token("session", "s", False, "m:r"),
    _token("session", "s", 1, None),
    _token("session", "s", 1, "\ud800"),
    _token("session", "s", 1),
    _token("session", "s", 1, "m:r", 1),
]
BAD_OPEN_TOKENS = [_token("session", "s", 1, "m:r"), _token("open", "", 0, "\ud800"), _token("open", "", True, "")]


@pytest.mark.parametrize("token", BAD_TOKENS, ids=range(len(BAD_TOKENS)))
async def test_a_page_token_of_another_listing_is_refused(bridge: RunningBridge, token: str) -> None:
    failed = await failure(bridge.admin.ListStreams(ListStreamsRequest(session_id="s", page_token=token)))
    assert failed.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "page_token"})


@pytest.mark.parametrize("token", BAD_OPEN_TOKENS, ids=range(len(BAD_OPEN_TOKENS)))
async def test_a_page_token_of_another_listing_is_refused_for_open_streams(bridge: RunningBridge, token: str) -> None:
    failed = await failure(bridge.admin.ListStreams(ListStreamsRequest(all_open=True, page_token=token)))
    assert failed.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "page_token"})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ListStreamsRequest(), "scope"),
        (ListStreamsRequest(all_open=False), "scope"),
        (ListStreamsRequest(session_id=""), "session_id"),
        (ListStreamsRequest(session_id="a\nb"), "session_id"),
        (ListStreamsRequest(session_id="s", page_size=1_001), "page_size"),
    ],
)
async def test_what_can_not_be_listed(bridge: RunningBridge, request_: ListStreamsRequest, field: str) -> None:
    failed = await failure(bridge.admin.ListStreams(request_))
    assert failed.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": field})


async def test_deleting(bridge: RunningBridge) -> None:
    stream = ref("r")
    delete = DeleteStreamRequest(stream=stream)
    await produce(bridge.bridge, stream, "a", "b", first=1)
    old = await _info(bridge, stream)
    reader = await attached(bridge.bridge, SubscribeRequest(stream=stream, after_cursor=old.cursor))
    await bridge.admin.DeleteStream(delete)
    ended = await failure(reader.read())
    assert ended.short == (grpc.StatusCode.OUT_OF_RANGE, "EXPIRED", {"earliest_cursor": ""})
    assert (await failure(_info(bridge, stream))).reason == "STREAM_NOT_FOUND"
    assert (await failure(bridge.admin.DeleteStream(delete))).reason == "STREAM_NOT_FOUND"
    assert await _listed(bridge, 0, session_id="s") == await _listed(bridge, 0, all_open=True) == []
    told = await failure(produce(bridge.bridge, stream, "c", first=3))
    assert told.short == (grpc.StatusCode.ABORTED, "SEQUENCE_GAP", {"expected": "1", "received": "3"})
    await produce(bridge.bridge, stream, "x", "y", "z", first=1, completion=STOP)
    assert (await read_all(bridge.bridge, stream)).text == "xyz"
    late = await failure(bridge.bridge.Subscribe(SubscribeRequest(stream=stream, after_cursor=old.cursor)).read())
    assert late.reason == "RESTARTED"


async def test_names_never_collide(bridge: RunningBridge) -> None:
    names = [name for name in NASTY_NAMES if name[1]]
    for i, (session, model, response) in enumerate(names):
        await produce(bridge.bridge, ref(response, session, model), f"token {i}", first=1, completion=STOP)
    for i, (session, model, response) in enumerate(names):
        assert (await read_all(bridge.bridge, ref(response, session, model))).texts == [f"token {i}"]
        found = _names(await _listed(bridge, 2, session_id=session))
        assert found == [name for name in reversed(names) if name[0] == session]


async def test_a_bridge_with_another_number_of_partitions_does_not_start(
    each_redis: RedisProcess, key_prefix: str
) -> None:
    async with running_bridge(each_redis.url, key_prefix=key_prefix, partitions=8):
        pass
    mismatch = pytest.RaisesExc(PartitionMismatch, match=r"LLMBRIDGE_PARTITIONS is 4, .* over 8 partitions")
    with pytest.RaisesGroup(mismatch, allow_unwrapped=True, flatten_subgroups=True):
        async with running_bridge(each_redis.url, key_prefix=key_prefix, partitions=4):
            pass
    async with running_bridge(each_redis.url, key_prefix=key_prefix, partitions=8):
        pass
