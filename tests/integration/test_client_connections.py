"""What the client offers of connections, over replies that are lost and pages that follow."""

from collections.abc import AsyncIterator

import pytest

from llmbridge.client import Client, ConnectionNotFound, Disconnected, RetryPolicy
from llmbridge.v1 import connection_service_pb2 as pb
from llmbridge.v1 import stream_pb2
from tests.support.fake_bridge import KEY, FakeBridge, serving
from tests.support.faults import Fault

QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.02)
LOST_REPLY = Fault("APPEND_OUTCOME_UNKNOWN", after_storing=True)
DOWN = Fault("REDIS_UNAVAILABLE")


@pytest.fixture
async def bridge() -> AsyncIterator[FakeBridge]:
    async with serving() as bridge:
        for number in range(5):
            stream = stream_pb2.StreamRef(session_id="ab"[number % 2], model_id="m")
            bridge.connections.attached.append(pb.Connection(id=str(number), stream=stream))
        bridge.connections.attached.append(pb.Connection(id="watcher"))
        yield bridge


@pytest.fixture
async def client(bridge: FakeBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=QUICK) as client:
        yield client


async def test_lists_fetch_all_pages(bridge: FakeBridge, client: Client) -> None:
    bridge.connections.faults.extend([DOWN, DOWN])
    assert [one.id async for one in client.connections.list(page_size=2)] == ["0", "1", "2", "3", "4", "watcher"]
    assert [one.id async for one in client.connections.list("a", page_size=2)] == ["0", "2", "4"]


async def test_count(bridge: FakeBridge, client: Client) -> None:
    bridge.connections.faults.append(DOWN)
    answer = await client.connections.count(max_sessions=1)
    assert (answer.total, answer.session_count) == (6, 2)
    assert [(one.session_id, one.connections) for one in answer.sessions] == [("a", 3)]


async def test_disconnect(bridge: FakeBridge, client: Client) -> None:
    bridge.connections.faults.append(LOST_REPLY)
    await client.connections.disconnect("3")
    assert "3" not in {one.id for one in bridge.connections.attached}
    with pytest.raises(ConnectionNotFound) as caught:
        await client.connections.disconnect("3")
    assert not caught.value.outcome_unknown


async def test_who_is_disconnected_is_told_and_does_not_come_back_by_itself(bridge: FakeBridge, client: Client) -> None:
    bridge.append("a", "b")
    bridge.subscribe_faults.append(Fault("DISCONNECTED", metadata={"cursor": "here"}, after_records=2))
    with pytest.raises(Disconnected) as caught:
        async for _ in client.subscribe(*KEY):
            pass
    assert caught.value.cursor == "here"
    assert len(bridge.subscribed) == 1


async def test_who_was_idle_goes_on_by_itself(bridge: FakeBridge, client: Client) -> None:
    bridge.append("a", "b")
    bridge.seal()
    bridge.subscribe_faults.append(Fault("CONNECTION_IDLE", after_records=1))
    texts = [piece async for piece in client.subscribe(*KEY).texts()]
    assert "".join(texts) == "ab"
    assert len(bridge.subscribed) == 2
