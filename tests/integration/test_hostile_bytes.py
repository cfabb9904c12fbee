"""No bytes of a client, however random, lead to INTERNAL or UNKNOWN, disturb others, or reach readers unparsed."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import connection_service_pb2 as connection_pb
from llmbridge.v1 import group_service_pb2 as group_pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb
from llmbridge.v1.token_pb2 import FINISH_REASON_STOP, ROLE_ASSISTANT, Completion, Generation, Token, ToolCall, Usage
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, failure_of, read_all, ref
from tests.support.log_surgery import LogSurgery
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")
FORBIDDEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
RICH = Token(
    tool_call=ToolCall(index=1, id="i", name="n", arguments="{"),
    role=ROLE_ASSISTANT,
    timestamp_ms=5,
    attributes={"a": "b"},
    generation=Generation(model="m", temperature=0.5, max_tokens=9),
)
END = Completion(
    finish_reason=FINISH_REASON_STOP, error_message="e", usage=Usage(prompt_tokens=1), attributes={"a": "b"}
)
UNARY: dict[str, Message] = {
    "/llmbridge.v1.BridgeService/Produce": pb.ProduceRequest(
        stream=STREAM,
        tokens=[RICH, Token(json="{}")],
        completion=END,
        first_sequence=1,
        producer_epoch=2,
        producer_id="p",
    ),
    "/llmbridge.v1.BridgeService/Cancel": pb.CancelRequest(stream=STREAM, reason="r"),
    "/llmbridge.v1.BridgeService/KeepAlive": pb.KeepAliveRequest(stream=STREAM, producer_epoch=2, producer_id="p"),
    "/llmbridge.v1.StreamAdminService/CreateStream": admin_pb.CreateStreamRequest(
        stream=STREAM, retention_ms=60_000, max_length=5
    ),
    "/llmbridge.v1.StreamAdminService/GetStream": admin_pb.GetStreamRequest(stream=STREAM),
    "/llmbridge.v1.StreamAdminService/ListStreams": admin_pb.ListStreamsRequest(
        all_open=True, page_size=3, page_token=base64.urlsafe_b64encode(b'["open", "", 5, "s:m:r"]').decode()
    ),
    "/llmbridge.v1.StreamAdminService/TrimStream": admin_pb.TrimStreamRequest(
        stream=STREAM, through_cursor="1760000000000000-1-0badcafe"
    ),
    "/llmbridge.v1.StreamAdminService/DeleteStream": admin_pb.DeleteStreamRequest(stream=STREAM),
    "/llmbridge.v1.GroupService/Acknowledge": group_pb.AcknowledgeRequest(
        group=group_pb.GroupRef(stream=STREAM, name="g"), ack_ids=["1760000000000000-1.1"]
    ),
    "/llmbridge.v1.GroupService/ExtendDeadline": group_pb.ExtendDeadlineRequest(
        group=group_pb.GroupRef(lifecycle=group_pb.LifecycleFeed()), ack_ids=["3:1760000000000-7.2"]
    ),
    "/llmbridge.v1.GroupService/Reject": group_pb.RejectRequest(
        group=group_pb.GroupRef(stream=STREAM, name="g"),
        ack_ids=["1760000000000000-1.1"],
        disposition=group_pb.DISPOSITION_DEAD_LETTER,
        reason="r",
    ),
    "/llmbridge.v1.GroupService/GetGroup": group_pb.GetGroupRequest(group=group_pb.GroupRef(stream=STREAM, name="g")),
    "/llmbridge.v1.GroupService/ListGroups": group_pb.ListGroupsRequest(stream=STREAM),
    "/llmbridge.v1.GroupService/ListConsumers": group_pb.ListConsumersRequest(
        group=group_pb.GroupRef(lifecycle=group_pb.LifecycleFeed(), name="g")
    ),
    "/llmbridge.v1.GroupService/DeleteGroup": group_pb.DeleteGroupRequest(
        group=group_pb.GroupRef(stream=STREAM, name="g")
    ),
    "/llmbridge.v1.GroupService/ListDeadLetters": group_pb.ListDeadLettersRequest(
        stream=STREAM,
        page_size=3,
        page_token=base64.urlsafe_b64encode(b'["dead letters", "s:m:r", 2, "1760000000000-0"]').decode(),
    ),
    "/llmbridge.v1.GroupService/RedriveDeadLetters": group_pb.RedriveDeadLettersRequest(ids=["3:1760000000000-0"]),
    "/llmbridge.v1.GroupService/DeleteDeadLetters": group_pb.DeleteDeadLettersRequest(ids=["3:1760000000000-0"]),
    "/llmbridge.v1.ConnectionService/ListConnections": connection_pb.ListConnectionsRequest(
        session_id="s",
        page_size=3,
        page_token=base64.urlsafe_b64encode(b'["connections", "s", 5, "0badcafe0badcafe"]').decode(),
    ),
    "/llmbridge.v1.ConnectionService/CountConnections": connection_pb.CountConnectionsRequest(max_sessions=3),
    "/llmbridge.v1.ConnectionService/DisconnectConnection": connection_pb.DisconnectConnectionRequest(
        connection_id="0badcafe0badcafe"
    ),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service="llmbridge.v1.BridgeService"),
}
SERVER_STREAM: dict[str, Message] = {
    "/llmbridge.v1.BridgeService/Subscribe": pb.SubscribeRequest(
        stream=STREAM, after_cursor="1760000000000000-1-0badcafe"
    ),
    "/grpc.health.v1.Health/Watch": health_pb2.HealthCheckRequest(service="llmbridge.v1.BridgeService"),
}
BOTH_STREAM: dict[str, Message] = {
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        host="h", file_containing_symbol="llmbridge.v1.BridgeService"
    ),
}
METHODS = UNARY | SERVER_STREAM | BOTH_STREAM


@pytest.fixture
async def target(shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, partitions=4) as running:
        yield running


async def send(channel: Any, method: str, raw: bytes, patience: float = 0.1) -> grpc.StatusCode:
    """Send raw bytes to a method and tell how the call ended; those that wait get that many seconds."""
    try:
        if method in UNARY:
            await channel.unary_unary(method)(raw, timeout=PATIENCE_SECONDS)
        elif method in SERVER_STREAM:
            call = channel.unary_stream(method)(raw, timeout=patience)
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            talk = channel.stream_stream(method)(timeout=PATIENCE_SECONDS)
            await talk.write(raw)
            await talk.done_writing()
            while await talk.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as error:
        if method.startswith("/llmbridge") and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            failure_of(error)
        return error.code()
    return grpc.StatusCode.OK


@st.composite
def mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid request with some of it overwritten, dropped, doubled or grown."""
    raw = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        length = draw(st.integers(0, 4))
        match draw(st.integers(0, 3)):
            case 0:
                raw[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case 1:
                del raw[at : at + length]
            case 2:
                raw[at:at] = raw[at : at + 4 * length]
            case _:
                raw[at:at] = draw(st.binary(max_size=8))
    return bytes(raw)


hostile = st.sampled_from(sorted(METHODS)).flatmap(
    lambda method: st.tuples(
        st.just(method), st.one_of(st.binary(max_size=200), mutated(METHODS[method].SerializeToString()))
    )
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(requests=st.lists(hostile, min_size=20, max_size=60))
async def test_random_and_mutated_requests(target: RunningBridge, requests: list[tuple[str, bytes]]) -> None:
    codes = await asyncio.gather(*(send(target.channel, method, raw) for method, raw in requests))
    assert [case for case, code in zip(requests, codes, strict=True) if code in FORBIDDEN] == []
    assert await send(target.channel, *healthy()) is grpc.StatusCode.OK


def healthy() -> tuple[str, bytes]:
    return "/grpc.health.v1.Health/Check", b""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


NESTED_GROUPS = b"\x0b" * 5_000 + b"\x0c" * 5_000
CASES = {
    "empty": b"",
    "no such field": field(1_000, b"x"),
    "field number 0": b"\x02\x01x",
    "cut varint": b"\xff" * 5,
    "overlong varint": b"\x08" + b"\xff" * 11 + b"\x01",
    "length beyond the end": b"\x0a\x7f",
    "length of 4 GiB": b"\x0a\xff\xff\xff\xff\x0f",
    "end of a group that never began": b"\x0c",
    "deeply nested groups": NESTED_GROUPS,
    "invalid UTF-8": field(3, field(1, b"\xff\xfe")) + field(1, field(1, b"\xc0\x80")),
    "invalid UTF-8 in a name": field(1, field(1, b"\xff")),
    "surrogate in a name": field(1, field(1, b"\xed\xa0\x80") + field(2, b"m")),
}


@pytest.mark.parametrize("raw", CASES.values(), ids=CASES)
async def test_malformed_requests_to_every_method(target: RunningBridge, raw: bytes) -> None:
    codes = await asyncio.gather(*(send(target.channel, method, raw) for method in METHODS))
    assert not FORBIDDEN & set(codes)


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message_are_told_so(target: RunningBridge, method: str) -> None:
    code = await send(target.channel, method, b"\xff\xff\xff", PATIENCE_SECONDS)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "place",
    [
        ["open", "", 0, "\ud800"],
        ["open", "", 0, "no colons"],
        ["open", "", 0, "a\0b"],
        ["open", "", True, "s:m:"],
        ["open", "", 10**400, ""],
        ["open", "", -1, ""],
        ["session", "s", 2**53 - 1, "\ud800"],
        ["session", "s", 1, "%"],
        ["session", "s", False, "m:r"],
        [[[]]],
        {},
    ],
)
async def test_page_tokens_that_no_page_had(target: RunningBridge, place: Any) -> None:
    token = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
    method = "/llmbridge.v1.StreamAdminService/ListStreams"
    for scope in ({"all_open": True}, {"session_id": "s"}):
        request = admin_pb.ListStreamsRequest(page_token=token, **scope)
        answer = await send(target.channel, method, request.SerializeToString())
        assert answer in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("method", ["/llmbridge.v1.BridgeService/Nothing", "/nothing", "/llmbridge.v2.Bridge/Produce"])
async def test_methods_that_are_not_there(target: RunningBridge, method: str) -> None:
    channel: Any = target.channel
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await channel.unary_unary(method)(b"x", timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_unknown_fields_are_neither_stored_nor_sent(
    target: RunningBridge, shared_redis: RedisProcess, key_prefix: str
) -> None:
    """At the top they could pose as SubscribeResponse's own: 3 is first_sequence there, 4 the cursor, 5 appended_ms."""
    extra = field(77, b"hidden") + b"\x98\x06\x01"
    token = RICH.SerializeToString() + extra + field(8, Generation(model="m").SerializeToString() + extra)
    completion = END.SerializeToString() + extra
    raw = (
        field(1, token)
        + field(2, completion)
        + field(3, STREAM.SerializeToString() + extra)
        + b"\x20\x01"
        + field(4, b"not-a-cursor")
        + b"\x18\x63"
        + b"\x2a\x01x"
        + extra
    )
    assert await send(target.channel, "/llmbridge.v1.BridgeService/Produce", raw) is grpc.StatusCode.OK
    with shared_redis.client() as client:
        log = LogSurgery(client, key_prefix, STREAM, partitions=4)
        [(_, fields)] = client.xrange(log.key)
    clean = pb.SubscribeResponse(tokens=[RICH], completion=END).SerializeToString(deterministic=True)
    assert fields[b"b"] == clean
    received = await read_all(target.bridge, STREAM)
    assert received.last == 2
    assert received.completion == END


async def test_what_is_stored_is_what_any_client_can_parse(target: RunningBridge) -> None:
    """Wire oddities that parsers accept (fields out of order, doubled, split) are stored in plain form."""
    split = field(1, b"\x28\x01") + field(1, field(1, b"a") + field(1, b"b"))
    raw = field(3, field(1, b"s")) + split[4:] + field(3, field(2, b"m") + field(3, b"r")) + b"\x20\x05\x20\x01"
    assert await send(target.channel, "/llmbridge.v1.BridgeService/Produce", raw) is grpc.StatusCode.OK
    end = pb.ProduceRequest(stream=STREAM, first_sequence=2, completion=STOP)
    await target.bridge.Produce(end)
    assert (await read_all(target.bridge, STREAM)).texts == ["b"]


async def test_one_hostile_client_does_not_disturb_another(target: RunningBridge) -> None:
    bad = json.dumps(["open", "", 0, "\ud800"]).encode()
    listing = admin_pb.ListStreamsRequest(all_open=True, page_token=base64.urlsafe_b64encode(bad).decode())
    await target.bridge.Produce(pb.ProduceRequest(stream=STREAM, tokens=[Token(text="a")], first_sequence=1))
    reads: list[Any] = []
    for _ in range(20):
        reads.append(Received().read(target.bridge.Subscribe(pb.SubscribeRequest(stream=STREAM)), through=1))
        reads.append(send(target.channel, "/llmbridge.v1.StreamAdminService/ListStreams", listing.SerializeToString()))
    results = await asyncio.gather(*reads)
    assert [result.texts for result in results[::2]] == [["a"]] * 20
