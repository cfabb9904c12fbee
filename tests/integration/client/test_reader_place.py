"""Where a reader stands: lost history, broken promises, positions and ends."""

# ruff: noqa: PT012 - what raises is the end of a block, too

import asyncio
from collections.abc import Callable

import grpc
import pytest

from llmbridge.client import (
    Client,
    FinishReason,
    HistoryLost,
    Message,
    Position,
    ProtocolViolation,
)
from llmbridge.v1 import bridge_service_pb2
from tests.support.calls import until
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.whole_response import WORDS, check_whole, read, whole

UNKNOWN_TRANSPORT = Fault(code=grpc.StatusCode.UNKNOWN, message="Stream removed")


@pytest.mark.parametrize("reason", ["RESTARTED", "TRIMMED", "LOST", "REWRITTEN", "EXPIRED"])
async def test_lost_history_is_told(bridge: FakeBridge, client: Client, reason: str) -> None:
    whole(bridge)
    earliest = bridge.log.cursor(7)
    bridge.subscribe_faults.append(Fault(reason, after_records=4, metadata={"earliest_cursor": earliest}))
    seen: list[Message] = []
    with pytest.raises(HistoryLost) as caught:
        async for message in client.subscribe(*KEY):
            seen.append(message)  # noqa: PERF401
    assert seen[-1].last_sequence == 4
    assert (caught.value.reason, caught.value.earliest_cursor) == (reason, earliest)
    rest = await read(client.subscribe(*KEY, after_cursor=caught.value.earliest_cursor))
    assert rest[0].first_sequence == 8
    assert "".join(message.text for message in rest) == "".join(WORDS[7:])


async def test_trimmed_restarted_and_deleted_streams(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    cursor = bridge.log.cursor(2)
    await client.streams.trim(*KEY, keep_tokens=5)
    for start in (cursor, ""):
        with pytest.raises(HistoryLost) as caught:
            await read(client.subscribe(*KEY, after_cursor=start))
        assert caught.value.reason == "TRIMMED"
    messages = await read(client.subscribe(*KEY, position=Position.EARLIEST))
    assert messages[0].first_sequence == 8
    await client.streams.delete(*KEY)
    with pytest.raises(HistoryLost) as caught:
        await read(client.subscribe(*KEY, after_cursor=cursor))
    assert (caught.value.reason, caught.value.earliest_cursor) == ("EXPIRED", "")
    bridge.append("new")
    with pytest.raises(HistoryLost) as caught:
        await read(client.subscribe(*KEY, after_cursor=cursor))
    assert caught.value.reason == "RESTARTED"


def shift(by: int, *, when: int) -> Callable[[bridge_service_pb2.SubscribeResponse], None]:
    def alter(response: bridge_service_pb2.SubscribeResponse) -> None:
        if response.first_sequence >= when:
            response.first_sequence += by

    return alter


@pytest.mark.parametrize("alter", [shift(1, when=1), shift(1, when=5), shift(-1, when=5), shift(-1, when=1)])
async def test_a_hole_or_a_repetition_is_told(
    bridge: FakeBridge, client: Client, alter: Callable[[bridge_service_pb2.SubscribeResponse], None]
) -> None:
    whole(bridge)
    bridge.largest_message = 2
    bridge.alter_response = alter
    subscription = client.subscribe(*KEY)
    seen: list[Message] = []
    with pytest.raises(ProtocolViolation):
        async for message in subscription:
            seen.append(message)  # noqa: PERF401
    # It stands where it stood, and goes on when the bridge has come to its senses.
    bridge.alter_response = lambda response: None
    check_whole(seen + await read(subscription))


async def test_a_hole_after_a_reconnection_is_told(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.subscribe_faults.append(Fault("DRAINING", after_records=4))
    bridge.alter_response = shift(2, when=5)
    with pytest.raises(ProtocolViolation, match="the next record is 5, the bridge sent 7"):
        await read(client.subscribe(*KEY))


async def test_records_without_a_number_are_told(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.alter_response = lambda response: response.ClearField("first_sequence")
    with pytest.raises(ProtocolViolation, match="any"):
        await read(client.subscribe(*KEY, after_cursor=bridge.log.cursor(2)))


async def test_a_message_without_a_cursor_is_told(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.alter_response = lambda response: response.ClearField("cursor")
    with pytest.raises(ProtocolViolation, match="cursor"):
        await read(client.subscribe(*KEY))


async def test_after_the_end_there_is_nothing(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    subscription = client.subscribe(*KEY, after_cursor=bridge.log.cursor(13))
    assert await read(subscription) == []
    assert await read(subscription) == []
    assert subscription.cursor == bridge.log.cursor(13)
    assert len(bridge.subscribed) == 1


async def test_an_end_without_a_completion_is_told(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.largest_message = 1

    def cut_completion(response: bridge_service_pb2.SubscribeResponse) -> None:
        if response.HasField("completion"):
            response.Clear()

    bridge.alter_response = cut_completion
    for after_cursor in ("", bridge.log.cursor(3)):
        with pytest.raises(ProtocolViolation, match="without a completion"):
            await read(client.subscribe(*KEY, after_cursor=after_cursor))


async def test_reading_goes_on_behind_a_cursor(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.subscribe_faults.append(Fault("DRAINING"))
    messages = await read(client.subscribe(*KEY, after_cursor=bridge.log.cursor(3)))
    assert messages[0].first_sequence == 4
    assert "".join(message.text for message in messages) == "".join(WORDS[3:])
    with pytest.raises(ValueError, match="not both"):
        client.subscribe(*KEY, after_cursor="1-2", position=Position.EARLIEST)


async def test_latest_is_fixed_when_the_bridge_tells_it(bridge: FakeBridge, client: Client) -> None:
    """What is appended between two calls is new, too."""
    bridge.append(*WORDS[:4])
    subscription = client.subscribe(*KEY, position=Position.LATEST)
    reading = asyncio.create_task(read(subscription))
    await until(lambda: subscription.cursor)
    assert subscription.cursor == bridge.log.cursor(4)
    await bridge.stop()
    bridge.append(*WORDS[4:])
    bridge.seal()
    await bridge.start()
    messages = await reading
    assert messages[0].first_sequence == 5
    assert "".join(message.text for message in messages) == "".join(WORDS[4:])


async def test_latest_of_a_stream_without_records_is_all_of_it(bridge: FakeBridge, client: Client) -> None:
    subscription = client.subscribe(*KEY, position=Position.LATEST)
    reading = asyncio.create_task(read(subscription))
    # The bridge has told the place, and that has arrived; nothing else tells that to a caller.
    await until(lambda: subscription._position is Position.BEGINNING)
    await bridge.stop()
    whole(bridge)
    await bridge.start()
    check_whole(await reading)


async def test_latest_of_a_sealed_stream_is_its_completion(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    [message] = await read(client.subscribe(*KEY, position=Position.LATEST))
    assert (message.first_sequence, message.tokens, message.finish_reason) == (13, (), FinishReason.STOP)
