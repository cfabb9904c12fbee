"""Everything else that the client offers: cancel, health, streams as a whole."""

import pytest
from grpc_health.v1 import health_pb2

from llmbridge.client import (
    BridgeFailure,
    Client,
    RetryPolicy,
    StreamExists,
    StreamName,
    StreamNotFound,
    Unavailable,
)
from llmbridge.v1 import stream_pb2, token_pb2
from tests.support.fake_bridge import KEY, FakeBridge
from tests.support.faults import Fault

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02)
NAME = StreamName(*KEY)
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)
DOWN = Fault("REDIS_UNAVAILABLE")


async def test_cancel_is_repeated_until_it_is_answered(bridge: FakeBridge, client: Client) -> None:
    bridge.append("a")
    bridge.cancel_faults.extend([DOWN, LOST_REPLY])
    answer = await client.cancel(NAME, reason="enough")
    assert answer.finish_reason == token_pb2.FINISH_REASON_CANCELLED
    assert (answer.sealer, answer.last_sequence) == (stream_pb2.SEALER_CANCEL, 2)
    assert bridge.log.completion is not None
    assert bridge.log.completion.error_message == "enough"


async def test_create_makes_an_id_that_survives_retries(bridge: FakeBridge, client: Client) -> None:
    bridge.admin.faults.extend([DOWN, LOST_REPLY])
    name = await client.streams.create("s", "m", retention_ms=5)
    assert list(bridge.logs) == [(name.session_id, name.model_id, name.response_id)]
    assert name.response_id
    assert name != await client.streams.create("s", "m")


async def test_create_of_a_name_that_exists(bridge: FakeBridge, client: Client) -> None:
    assert await client.streams.create(NAME) == NAME
    with pytest.raises(StreamExists) as caught:
        await client.streams.create(NAME)
    assert not caught.value.outcome_unknown
    other = StreamName("s", "m", "other")
    bridge.admin.faults.append(LOST_REPLY)
    with pytest.raises(StreamExists) as caught:
        await client.streams.create(other)
    assert caught.value.outcome_unknown


async def test_get(bridge: FakeBridge, client: Client) -> None:
    with pytest.raises(StreamNotFound):
        await client.streams.get(NAME)
    bridge.append("a", "b")
    bridge.admin.faults.append(DOWN)
    info = await client.streams.get(NAME)
    assert (info.last_sequence, info.state) == (2, stream_pb2.STREAM_STATE_OPEN)


async def test_lists_fetch_all_pages(bridge: FakeBridge, client: Client) -> None:
    for number in range(5):
        bridge.append("a", key=("s", "m", str(number)))
    bridge.append("a", key=("other", "m", ""))
    bridge.seal(key=("s", "m", "3"))
    bridge.admin.faults.extend([DOWN, DOWN])
    ids = [info.stream.response_id async for info in client.streams.of_session("s", page_size=2)]
    assert ids == ["4", "3", "2", "1", "0"]
    still_open = {info.stream.response_id async for info in client.streams.open(page_size=2)}
    assert still_open == {"0", "1", "2", "4", ""}


async def test_trim(bridge: FakeBridge, client: Client) -> None:
    bridge.append("a", "b", "c", "d")
    assert (await client.streams.trim(NAME, keep_tokens=3)).first_sequence == 2
    assert (await client.streams.trim(NAME, through_cursor=bridge.log.cursor(3))).first_sequence == 4
    with pytest.raises(ValueError, match="either"):
        await client.streams.trim(NAME)
    with pytest.raises(ValueError, match="either"):
        await client.streams.trim(NAME, keep_tokens=1, through_cursor="x")


async def test_delete(bridge: FakeBridge, client: Client) -> None:
    bridge.append("a")
    bridge.admin.faults.append(LOST_REPLY)
    await client.streams.delete(NAME)
    assert KEY not in bridge.logs
    with pytest.raises(StreamNotFound):
        await client.streams.delete(NAME)
    bridge.admin.faults.append(DOWN)
    with pytest.raises(StreamNotFound):
        await client.streams.delete(NAME)


async def test_health(bridge: FakeBridge, client: Client) -> None:
    assert await client.is_serving()
    await bridge.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await client.is_serving()
    with pytest.raises(BridgeFailure):
        await client.is_serving("no.such.Service")
    await bridge.stop()
    with pytest.raises(Unavailable):
        await client.is_serving()


async def test_of_several_addresses_one_that_answers_is_used(bridge: FakeBridge) -> None:
    bridge.append("a")
    async with FakeBridge() as other:
        nobody = other.address
    async with Client(f"{nobody},{bridge.address}", retry=QUICK) as client:
        assert (await client.streams.get(NAME)).last_sequence == 1


async def test_a_client_is_for_its_block(bridge: FakeBridge) -> None:
    client = Client(bridge.address)
    with pytest.raises(RuntimeError, match="block"):
        client.subscribe(NAME)
    async with client:
        with pytest.raises(RuntimeError, match="block"):
            await client.__aenter__()
