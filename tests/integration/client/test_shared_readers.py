"""All readers of a client share one call: each has its place, its pace and its end."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llmbridge.client import Client, ClientClosed, HistoryLost, InvalidRequest, Message, Unavailable, subscribe_call
from llmbridge.client.connection import Connection
from llmbridge.client.values import stream_ref
from llmbridge.model.names import StreamName
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest, SubscribeResponse
from tests.support.calls import until
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault
from tests.support.whole_response import QUICK, WORDS, check_whole, read, whole

LARGE = "x" * 10_000


@pytest.fixture
async def connection(bridge: FakeBridge) -> AsyncIterator[Connection]:
    connection = Connection(bridge.address, QUICK)
    yield connection
    await connection.close()


def key(number: int) -> tuple[str, str, str]:
    return "s", "m", str(number)


def request(**fields: str) -> SubscribeRequest:
    return SubscribeRequest(stream=stream_ref(StreamName(*KEY)), **fields)  # type: ignore[arg-type]


async def test_readers_share_a_call(bridge: FakeBridge, client: Client) -> None:
    for number in range(10):
        bridge.append(*WORDS, key=key(number))
        bridge.seal(key=key(number))
    for messages in await asyncio.gather(*(read(client.subscribe(*key(number % 10))) for number in range(20))):
        check_whole(messages)
    assert (bridge.subscribe_calls, len(bridge.subscribed)) == (1, 20)
    assert len(bridge.subscribe_messages) < 20


async def test_one_end_is_not_that_of_the_others(bridge: FakeBridge, client: Client) -> None:
    whole(bridge)
    bridge.subscribe_faults.append(Fault("TRIMMED", after_records=2))
    outcomes = await asyncio.gather(*(read(client.subscribe(*KEY)) for _ in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [HistoryLost, list, list, list]
    assert bridge.subscribe_calls == 1


async def test_a_broken_call_is_resumed_by_everybody(bridge: FakeBridge, client: Client) -> None:
    readers = [asyncio.create_task(read(client.subscribe(*KEY))) for _ in range(6)]
    for number, word in enumerate(WORDS):
        bridge.append(word)
        await asyncio.sleep(0.01)
        if number % 4 == 3:
            await bridge.stop()
            await bridge.start()
    bridge.seal()
    for messages in await asyncio.gather(*readers):
        check_whole(messages)


async def test_a_slow_reader_holds_up_only_itself(bridge: FakeBridge, client: Client) -> None:
    slow = client.subscribe(*KEY)
    bridge.append(*[LARGE] * 200)
    bridge.seal()
    messages: list[Message] = [await anext(slow)]
    fast = await read(client.subscribe(*KEY))
    assert fast[-1].last_sequence == 201
    reading = slow._reading
    assert reading is not None

    def held() -> int:
        return sum(arrival.size for arrival in reading._inbox.arrivals)

    await until(lambda: held() > 100_000)
    # No more than its credit is here for it, and a message that went over it.
    await asyncio.sleep(0.05)
    assert held() < subscribe_call.CREDIT_BYTES + 100_000
    messages += await read(slow)
    assert [len(token.text) for message in messages for token in message.tokens] == [10_000] * 200
    assert len(bridge.subscribed) == 2


async def test_an_impatient_reader_leaves_the_others_alone(bridge: FakeBridge, client: Client) -> None:
    """Nothing is heard, which is too long for one of them; the other takes its call for alive."""
    patient = asyncio.create_task(read(client.subscribe(*key(1))))
    await bridge.until(lambda: bridge.readers == 1)
    impatient = asyncio.create_task(read(client.subscribe(*key(2), silence_timeout=0.1)))
    await bridge.until(lambda: bridge.subscribe_calls >= 3)
    for number in (1, 2):
        bridge.append(*WORDS, key=key(number))
        bridge.seal(key=key(number))
    check_whole(await patient)
    check_whole(await impatient)
    assert [one.stream.response_id for one in bridge.subscribed].count("1") == 1


async def test_the_call_ends_when_the_last_has_left(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_call, "_IDLE_SECONDS", 0.5)
    whole(bridge)
    check_whole(await read(client.subscribe(*KEY)))
    check_whole(await read(client.subscribe(*KEY)))
    assert bridge.subscribe_calls == 1
    [shared] = client._connection._subscriptions.values()
    async with asyncio.timeout(10):
        while shared._calls:
            await asyncio.sleep(0.01)
    check_whole(await read(client.subscribe(*KEY)))
    assert bridge.subscribe_calls == 2


async def test_numbers_come_again_when_they_are_free(
    bridge: FakeBridge, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmbridge.client.numbers.LARGEST_NUMBER", 3)
    longest = asyncio.create_task(read(client.subscribe(*KEY)))
    await bridge.until(lambda: bridge.readers == 1)
    bridge.append(*WORDS, key=key(2))
    bridge.seal(key=key(2))
    for _ in range(6):
        check_whole(await read(client.subscribe(*key(2))))
    whole(bridge)
    check_whole(await longest)
    numbers = [start.subscription for message in bridge.subscribe_messages for start in message.starts]
    assert numbers == [1, 2, 3, 2, 3, 2, 3]


async def past_heartbeats(reading: AsyncIterator[SubscribeResponse], cursor: str) -> SubscribeResponse:
    """Read on to the next record; on a busy machine several heartbeats may come before it."""
    while not (response := await anext(reading)).first_sequence:
        assert response == SubscribeResponse(cursor=cursor)
    return response


async def test_raw_messages_come_with_heartbeats(bridge: FakeBridge, connection: Connection) -> None:
    bridge.heartbeat = 0.05
    reading = connection.subscribe(request(), "sse")
    assert await anext(reading) == SubscribeResponse()
    bridge.append("a")
    assert (await past_heartbeats(reading, "")).first_sequence == 1
    assert await anext(reading) == SubscribeResponse(cursor=bridge.log.cursor(1))
    bridge.seal()
    responses = [response async for response in reading]
    assert responses[-1].HasField("completion")
    assert [response async for response in connection.subscribe(request(after_cursor=responses[-1].cursor))] == []
    assert bridge.transports == ["sse", ""]


async def test_a_busy_call_has_heartbeats_for_idle_readers(
    bridge: FakeBridge, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe_call, "_HEARTBEAT_SECONDS", 0.05)
    idle = connection.subscribe(request())
    busy = connection.subscribe(SubscribeRequest(stream=stream_ref(StreamName(*key(1)))))
    waiting = asyncio.create_task(anext(idle))
    async with asyncio.timeout(10):
        while not waiting.done():
            bridge.append("x", key=key(1))
            await anext(busy)
            await asyncio.sleep(0.01)
    assert waiting.result() == SubscribeResponse()
    assert bridge.beats == 0


async def test_closing_ends_the_waiting(bridge: FakeBridge, connection: Connection) -> None:
    reading = connection.subscribe(request())
    waiting = asyncio.create_task(anext(reading, None))
    await bridge.until(lambda: bridge.readers == 1)
    reading.close()
    assert await waiting is None
    await bridge.until(lambda: bridge.readers == 0)
    assert bridge.endings == ["cancelled"]


async def test_raw_reading_fails_as_a_call_would(bridge: FakeBridge, connection: Connection) -> None:
    bridge.append("a")
    bridge.subscribe_faults.append(Fault("DRAINING", after_records=1, metadata={"cursor": "here"}))
    reading = connection.subscribe(request())
    assert (await anext(reading)).first_sequence == 1
    with pytest.raises(Unavailable) as caught:
        await anext(reading)
    assert (caught.value.reason, caught.value.metadata["cursor"]) == ("DRAINING", "here")
    # What is new goes elsewhere.
    assert (await anext(connection.subscribe(request()))).first_sequence == 1
    assert bridge.subscribe_calls == 2


async def test_what_is_too_large_for_the_call_is_refused(bridge: FakeBridge, client: Client) -> None:
    other = asyncio.create_task(read(client.subscribe(*KEY)))
    await bridge.until(lambda: bridge.readers == 1)
    for subscription in (client.subscribe("s" * 100_000, "m", "r"), client.subscribe(*KEY, after_cursor="1" * 100_000)):
        with pytest.raises(InvalidRequest, match="too long"):
            await anext(subscription)
    whole(bridge)
    check_whole(await other)
    assert bridge.subscribe_calls == 1


async def test_many_readers_begin_in_several_messages(bridge: FakeBridge, client: Client) -> None:
    names = [("s", "m", f"{number:0>1000}") for number in range(300)]
    readers = [asyncio.create_task(read(client.subscribe(*name))) for name in names]
    await bridge.until(lambda: bridge.readers == 300)
    assert 1 < len(bridge.subscribe_messages) <= 4
    assert max(message.ByteSize() for message in bridge.subscribe_messages) < 262_144
    for name in names:
        bridge.seal(key=name)
    assert [len(messages) for messages in await asyncio.gather(*readers)] == [1] * 300


async def test_a_closed_client_takes_nothing_new(bridge: FakeBridge) -> None:
    connection = Connection(bridge.address, QUICK)
    reading = connection.subscribe(request())
    waiting = asyncio.create_task(anext(reading))
    await connection.close()
    with pytest.raises(ClientClosed):
        await waiting
    with pytest.raises(ClientClosed):
        connection.subscribe(request())
