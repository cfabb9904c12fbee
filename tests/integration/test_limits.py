"""Every limit and every bad field: the code, the reason, and metadata that says what to change. Nothing is stored."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from llmbridge.v1 import bridge_service_pb2 as pb
from llmbridge.v1 import stream_admin_service_pb2 as admin_pb
from llmbridge.v1.token_pb2 import ROLE_ASSISTANT, Completion, Token
from tests.support.calls import STOP, Received, attached, failure, produce, ref, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
OK = ref("r")
HI = [Token(text="hi")]
TOO_LARGE = 2**53
MINUS_ONE: Any = -1
FIVE: Any = 5
SEVEN: Any = 7
LIMITS: dict[str, Any] = {
    "max_request_bytes": 4_096,
    "max_token_bytes": 1_024,
    "max_tokens_per_request": 10,
    "max_id_bytes": 32,
    "max_stream_tokens": 20,
    "max_retention_ms": 100_000_000,
}


@pytest.fixture
async def strict(shared_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, **LIMITS) as running:
        yield running
    with shared_redis.client() as client:
        assert [key for key in client.scan_iter(f"{key_prefix}:*") if b":stream:" in key] == []


def call(bridge: RunningBridge, request: Any) -> Any:
    """Send a request to its method."""
    name = type(request).__name__.removesuffix("Request")
    if name == "Subscribe":
        return Received().read(bridge.bridge.Subscribe(request))
    return getattr(bridge.admin if name.endswith(("Stream", "Streams")) else bridge.bridge, name)(request)


def requests_about(stream: Any) -> list[Any]:
    """One valid request of each method that names a stream."""
    return [
        pb.ProduceRequest(stream=stream, tokens=HI),
        pb.SubscribeRequest(stream=stream),
        pb.CancelRequest(stream=stream),
        pb.KeepAliveRequest(stream=stream),
        admin_pb.CreateStreamRequest(stream=stream),
        admin_pb.GetStreamRequest(stream=stream),
        admin_pb.TrimStreamRequest(stream=stream, keep_tokens=1),
        admin_pb.DeleteStreamRequest(stream=stream),
    ]


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        (None, "stream.session_id"),
        (ref(session=""), "stream.session_id"),
        (ref(model=""), "stream.model_id"),
        (ref(session="s" * 33), "stream.session_id"),
        (ref(model="é" * 17), "stream.model_id"),
        (ref("r" * 33), "stream.response_id"),
        (ref(session="a\0b"), "stream.session_id"),
        (ref(model="a\nb"), "stream.model_id"),
        (ref("a\x7f"), "stream.response_id"),
        (ref("a\x85"), "stream.response_id"),
    ],
)
async def test_stream_names_of_every_method(strict: RunningBridge, stream: Any, field: str) -> None:
    for request in requests_about(stream):
        failed = await failure(call(strict, request))
        assert failed.short == (INVALID, "INVALID_FIELD", {"field": field}), request
        assert field in failed.message


def tokens(*parts: Any) -> pb.ProduceRequest:
    return pb.ProduceRequest(stream=OK, tokens=parts)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ProduceRequest(stream=OK), "tokens"),
        (tokens(Token(text="a"), Token()), "tokens[1].content"),
        (tokens(Token(role=ROLE_ASSISTANT)), "tokens[0].content"),
        (tokens(Token(text="a", role=FIVE)), "tokens[0].role"),
        (tokens(Token(text="a", role=MINUS_ONE)), "tokens[0].role"),
        (tokens(Token(json="")), "tokens[0].json"),
        (tokens(Token(text="a"), Token(json="{")), "tokens[1].json"),
        (tokens(Token(json="{} {}")), "tokens[0].json"),
        (tokens(Token(json="NaN")), "tokens[0].json"),
        (tokens(Token(json="[" * 1_000)), "tokens[0].json"),
        (tokens(Token(json="9" * 1_000 + "x")), "tokens[0].json"),
        (pb.ProduceRequest(stream=OK, completion=Completion()), "completion.finish_reason"),
        (pb.ProduceRequest(stream=OK, completion=Completion(finish_reason=SEVEN)), "completion.finish_reason"),
        (pb.ProduceRequest(stream=OK, completion=Completion(finish_reason=MINUS_ONE)), "completion.finish_reason"),
        (pb.ProduceRequest(stream=OK, tokens=HI, first_sequence=TOO_LARGE), "first_sequence"),
        (pb.ProduceRequest(stream=OK, tokens=HI * 2, first_sequence=TOO_LARGE - 1), "first_sequence"),
        (pb.ProduceRequest(stream=OK, tokens=HI, completion=STOP, first_sequence=TOO_LARGE - 1), "first_sequence"),
        (pb.ProduceRequest(stream=OK, tokens=HI, first_sequence=2**64 - 1), "first_sequence"),
        (pb.ProduceRequest(stream=OK, tokens=HI, producer_epoch=TOO_LARGE), "producer_epoch"),
        (pb.ProduceRequest(stream=OK, tokens=HI, producer_id="p" * 65), "producer_id"),
        (pb.ProduceRequest(stream=OK, tokens=HI, producer_id="é" * 33), "producer_id"),
        (pb.KeepAliveRequest(stream=OK, producer_epoch=TOO_LARGE), "producer_epoch"),
        (pb.KeepAliveRequest(stream=OK, producer_id="p" * 65), "producer_id"),
        (pb.CancelRequest(stream=OK, reason="r" * 1_025), "reason"),
        (pb.CancelRequest(stream=OK, reason="é" * 513), "reason"),
        (pb.SubscribeRequest(stream=OK, position=FIVE), "position"),
        (pb.SubscribeRequest(stream=OK, position=MINUS_ONE), "position"),
        (pb.SubscribeRequest(stream=OK, after_cursor="1-2"), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor="1-2-0badcafe "), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor="1-2-0BADCAFE"), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor="٣-2-0badcafe"), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor=f"1-{TOO_LARGE}-0badcafe"), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor=f"{TOO_LARGE}-1-0badcafe"), "after_cursor"),
        (pb.SubscribeRequest(stream=OK, after_cursor="9" * 2_000), "after_cursor"),
        (admin_pb.CreateStreamRequest(stream=OK, retention_ms=-1), "retention_ms"),
        (admin_pb.CreateStreamRequest(stream=OK, retention_ms=999), "retention_ms"),
        (admin_pb.CreateStreamRequest(stream=OK, max_length=TOO_LARGE), "max_length"),
        (admin_pb.TrimStreamRequest(stream=OK), "until"),
        (admin_pb.TrimStreamRequest(stream=OK, keep_tokens=0), "until"),
        (admin_pb.TrimStreamRequest(stream=OK, keep_tokens=TOO_LARGE), "until"),
        (admin_pb.TrimStreamRequest(stream=OK, through_cursor=""), "through_cursor"),
        (admin_pb.TrimStreamRequest(stream=OK, through_cursor="1-2-3"), "through_cursor"),
        (admin_pb.ListStreamsRequest(), "scope"),
        (admin_pb.ListStreamsRequest(all_open=False), "scope"),
        (admin_pb.ListStreamsRequest(session_id=""), "session_id"),
        (admin_pb.ListStreamsRequest(session_id="s" * 33), "session_id"),
        (admin_pb.ListStreamsRequest(session_id="\t"), "session_id"),
        (admin_pb.ListStreamsRequest(session_id="s", page_size=1_001), "page_size"),
        (admin_pb.ListStreamsRequest(session_id="s", page_token="x"), "page_token"),
        (admin_pb.ListStreamsRequest(all_open=True, page_token="é"), "page_token"),
        (admin_pb.ListStreamsRequest(all_open=True, page_token="W10="), "page_token"),
    ],
)
async def test_bad_fields(strict: RunningBridge, request_: Any, field: str) -> None:
    failed = await failure(call(strict, request_))
    assert failed.short == (INVALID, "INVALID_FIELD", {"field": field})
    assert failed.message.startswith(f"{field}: ")
    assert failed.retry_ms is None


LONG_REQUESTS = [
    pb.ProduceRequest(stream=OK, tokens=[Token(text="x" * 1_000)] * 5),
    pb.CancelRequest(stream=OK, reason="x" * 5_000),
    pb.SubscribeRequest(stream=OK, after_cursor="x" * 5_000),
]
LARGE_TOKENS = [Token(text="x" * 1_022), Token(text="a", attributes={"k": "x" * 1_020})]


@pytest.mark.parametrize(
    ("request_", "limit", "value"),
    [
        *((request, "max_request_bytes", request.ByteSize()) for request in LONG_REQUESTS),
        *((tokens(*HI, token), "max_token_bytes", token.ByteSize()) for token in LARGE_TOKENS),
        (tokens(*HI * 11), "max_tokens_per_request", 11),
        (admin_pb.CreateStreamRequest(stream=OK, retention_ms=100_000_001), "max_retention_ms", 100_000_001),
    ],
)
async def test_limits(strict: RunningBridge, request_: Any, limit: str, value: int) -> None:
    failed = await failure(call(strict, request_))
    maximum = LIMITS[limit]
    assert failed.short == (
        EXHAUSTED,
        "LIMIT_EXCEEDED",
        {"limit": limit, "maximum": str(maximum), "value": str(value)},
    )
    assert failed.message.startswith(f"{limit} is {maximum}, this would be {value}: ")


async def test_the_length_of_a_stream(strict: RunningBridge) -> None:
    for first in (1, 11):
        await produce(strict.bridge, OK, *["x"] * 10, first=first)
    failed = await failure(produce(strict.bridge, OK, "x", first=21))
    assert failed.short == (
        EXHAUSTED,
        "LIMIT_EXCEEDED",
        {"limit": "max_stream_tokens", "maximum": "20", "value": "21"},
    )
    # It can still be completed.
    await produce(strict.bridge, OK, first=21, completion=STOP)
    await strict.admin.DeleteStream(admin_pb.DeleteStreamRequest(stream=OK))


async def test_everything_at_its_limit_is_accepted(strict: RunningBridge) -> None:
    stream = ref("r" * 32, session="é" * 16, model="m" * 32)
    longest: dict[str, Any] = {"producer_epoch": TOO_LARGE - 1, "producer_id": "p" * 64}
    largest = Token(text="x" * 1_021)
    assert largest.ByteSize() == 1_024
    request = pb.ProduceRequest(stream=stream, tokens=[largest] * 3 + HI * 7, first_sequence=1, **longest)
    # A length over 127 takes one more byte, in the token and in the text.
    request.tokens[9].text = "y" * (len("hi") + 4_096 - request.ByteSize() - 2)
    assert request.ByteSize() == 4_096
    await strict.bridge.Produce(request)
    await strict.bridge.KeepAlive(pb.KeepAliveRequest(stream=stream, **longest))
    await strict.bridge.Cancel(pb.CancelRequest(stream=stream, reason="r" * 1_024))
    received = await Received().read(strict.bridge.Subscribe(pb.SubscribeRequest(stream=stream)))
    assert len(received.texts) == 10
    await strict.admin.DeleteStream(admin_pb.DeleteStreamRequest(stream=stream))
    await strict.admin.CreateStream(
        admin_pb.CreateStreamRequest(stream=stream, retention_ms=100_000_000, max_length=TOO_LARGE - 1)
    )
    await strict.admin.DeleteStream(admin_pb.DeleteStreamRequest(stream=stream))


async def test_readers_of_a_process(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, max_readers=2) as bridge:
        calls = [await attached(bridge.bridge, pb.SubscribeRequest(stream=ref(str(i)))) for i in range(2)]
        one_more = pb.SubscribeRequest(stream=OK)
        assert (await failure(call(bridge, one_more))).short == (
            EXHAUSTED,
            "LIMIT_EXCEEDED",
            {"limit": "max_readers", "maximum": "2", "value": "3"},
        )
        calls[0].cancel()
        await until(lambda: len(bridge.core._connections) == 1)
        (await attached(bridge.bridge, one_more)).cancel()
        calls[1].cancel()


async def test_no_error_is_too_large_for_the_peer(shared_redis: RedisProcess, key_prefix: str) -> None:
    """Errors that name what the client sent must fit into trailers, percent-encoded and in base64."""
    longest = "🐘" * 256
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, max_id_bytes=1_024) as bridge:
        request = admin_pb.GetStreamRequest(stream=ref(longest, session=longest, model=longest))
        failed = await failure(bridge.admin.GetStream(request))
        assert failed.short == (
            grpc.StatusCode.NOT_FOUND,
            "STREAM_NOT_FOUND",
            {"session_id": longest, "model_id": longest, "response_id": longest},
        )


async def test_a_request_too_large_for_grpc_itself(bridge: RunningBridge) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await produce(bridge.bridge, OK, "x" * 4_200_000)
    assert refused.value.code() is EXHAUSTED
