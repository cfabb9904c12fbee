"""What readers get besides messages (texts, tokens), and how long reading may take as a whole."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio

import grpc
import pytest

from llmbridge.client import Client, ClientError, DeadlineExceeded, FinishReason, Message, ResponseFailed, Unavailable
from llmbridge.v1 import token_pb2
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.whole_response import WORDS, check_whole, read, whole


async def test_only_the_text(bridge: FakeBridge, client: Client) -> None:
    bridge.append("Hel")
    bridge.log.tokens.append(token_pb2.Token(reasoning="hm"))
    bridge.append("", "lo")
    bridge.seal(token_pb2.FINISH_REASON_CANCELLED)
    texts = client.subscribe(*KEY).texts()
    assert [piece async for piece in texts] == ["Hel", "lo"]
    assert texts.subscription.completion is not None
    assert FinishReason.of(texts.subscription.completion) is FinishReason.CANCELLED
    assert [piece async for piece in texts] == []


async def test_text_that_ends_with_an_error_is_not_taken_for_whole(bridge: FakeBridge, client: Client) -> None:
    bridge.append("Hel")
    bridge.seal(token_pb2.FINISH_REASON_ERROR, "out of memory")
    pieces: list[str] = []
    texts = client.subscribe(*KEY).texts()
    for _ in range(2):
        with pytest.raises(ResponseFailed, match="out of memory"):
            async for piece in texts:
                pieces.append(piece)  # noqa: PERF401
    assert pieces == ["Hel"]
    # Whoever reads messages sees the completion itself.
    assert (await read(client.subscribe(*KEY)))[-1].finish_reason is FinishReason.ERROR


async def test_the_tokens_one_by_one(bridge: FakeBridge, client: Client) -> None:
    bridge.append("Hel")
    bridge.log.tokens.append(token_pb2.Token(reasoning="hm"))
    bridge.append("lo")
    bridge.seal(token_pb2.FINISH_REASON_ERROR, "out of memory")
    tokens = client.subscribe(*KEY).tokens()
    assert [await anext(tokens) for _ in range(3)] == bridge.log.tokens
    with pytest.raises(ResponseFailed, match="out of memory"):
        await anext(tokens)


async def test_reading_ends_in_time(bridge: FakeBridge, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    bridge.heartbeat = 0.05
    bridge.append(*WORDS[:5])
    seen: list[Message] = []
    subscription = client.subscribe(*KEY, timeout=0.4)
    began = clock()
    with pytest.raises(DeadlineExceeded) as caught:
        async for message in subscription:
            seen.append(message)  # noqa: PERF401
    assert 0.35 < clock() - began < 2
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ClientError)
    # It stays so, and the place is known.
    with pytest.raises(DeadlineExceeded):
        await anext(subscription)
    await bridge.until(lambda: bridge.readers == 0)
    bridge.append(*WORDS[5:])
    bridge.seal()
    rest = await read(client.subscribe(*KEY, after_cursor=subscription.cursor, timeout=10))
    check_whole(seen + rest)


async def test_an_outage_ends_in_time_too(bridge: FakeBridge, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    await bridge.stop()
    began = clock()
    with pytest.raises(DeadlineExceeded):
        await anext(client.subscribe(*KEY, timeout=0.4))
    assert 0.35 < clock() - began < 2
    with pytest.raises(Unavailable):
        await anext(client.subscribe(*KEY, timeout=10, retry_for=0.2))


async def test_a_call_that_is_ended_for_its_age_is_begun_again(bridge: FakeBridge, client: Client) -> None:
    """By a proxy, say: the client itself gives shared calls no deadline."""
    whole(bridge)
    bridge.subscribe_faults.append(Fault(code=grpc.StatusCode.DEADLINE_EXCEEDED, after_records=4))
    check_whole(await read(client.subscribe(*KEY)))
    assert len(bridge.subscribed) == 2
