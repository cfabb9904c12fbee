"""Several workers on one port: they are one bridge, whichever of them is asked."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmbridge.v1 import connection_service_pb2 as pb
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from llmbridge.v1.lifecycle_service_pb2 import WatchStreamsRequest
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceStub
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, produce, read_all, ref, stub
from tests.support.group_calls import GroupMember, membership
from tests.support.redis_process import RedisProcess, usable_binary
from tests.support.workers import channel_to_each, serve_with

Channels = dict[int, grpc.aio.Channel]


@pytest.fixture(scope="module")
def redis_of_workers() -> Iterator[RedisProcess]:
    """A Redis that has no other clients."""
    server = RedisProcess(usable_binary()).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def served(redis_of_workers: RedisProcess) -> Iterator[BridgeProcess]:
    """Two workers with HTTP. The tests tell each other's sessions apart."""
    process = serve_with(2, http=True, REDIS_URL=redis_of_workers.url).start()
    yield process
    process.close()


@pytest.fixture
async def channels(served: BridgeProcess) -> AsyncIterator[Channels]:
    async with channel_to_each(served.address, 2) as found:
        yield found


@pytest.fixture
def session() -> str:
    return f"s{secrets.token_hex(4)}"


async def listed(channel: grpc.aio.Channel, **request: Any) -> pb.ListConnectionsResponse:
    stub: Any = ConnectionServiceStub(channel)
    answer: pb.ListConnectionsResponse = await stub.ListConnections(
        pb.ListConnectionsRequest(**request), timeout=PATIENCE_SECONDS
    )
    return answer


async def disconnect(channel: grpc.aio.Channel, connection_id: str) -> None:
    stub: Any = ConnectionServiceStub(channel)
    await stub.DisconnectConnection(
        pb.DisconnectConnectionRequest(connection_id=connection_id), timeout=PATIENCE_SECONDS
    )


async def none_left(channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await listed(channel)).connections:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("writer", [1, 2])
async def test_what_one_stores_the_other_delivers(channels: Channels, session: str, writer: int) -> None:
    stream = ref("r", session=session)
    call = await attached(stub(channels[3 - writer]), SubscribeRequest(stream=stream))
    received = Received()
    for i in range(1, 21):
        await produce(stub(channels[writer]), stream, f"{i} ", first=i)
    await received.read(call, through=20)
    await produce(stub(channels[writer]), stream, first=21, completion=STOP)
    assert (await received.read(call)).texts == [f"{i} " for i in range(1, 21)]
    assert (await read_all(stub(channels[writer]), stream)).texts == received.texts


async def test_each_lists_and_counts_the_connections_of_all(channels: Channels, session: str) -> None:
    order = [1, 2, 2, 1, 1, 2, 1]
    calls = [
        await attached(stub(channels[worker]), SubscribeRequest(stream=ref(str(i), session=session)))
        for i, worker in enumerate(order)
    ]
    for channel in channels.values():
        whole = await listed(channel, session_id=session)
        assert [one.stream.response_id for one in whole.connections] == [str(i) for i in range(7)]
        assert [int(one.id[-2:], 16) for one in whole.connections] == order
        assert whole.next_page_token == ""
    # Page by page, each asked of the other worker than the one before.
    for size in (1, 2, 3, 7):
        found, token, pages = [], "", 0
        while pages == 0 or token:
            page = await listed(channels[1 + pages % 2], session_id=session, page_size=size, page_token=token)
            found += [one.stream.response_id for one in page.connections]
            token, pages = page.next_page_token, pages + 1
        assert found == [str(i) for i in range(7)]
        assert pages == -(-7 // size)
    second = await attached(stub(channels[2]), SubscribeRequest(stream=ref("a", session=f"{session} too")))
    for channel in channels.values():
        service: Any = ConnectionServiceStub(channel)
        count = await service.CountConnections(pb.CountConnectionsRequest())
        # The session that the channels were told apart by may not have gone yet.
        counted = Counter({one.session_id: one.connections for one in count.sessions})
        assert (counted[session], counted[f"{session} too"]) == (7, 1)
        assert count.total == sum(counted.values())
        assert count.session_count == len(counted)
        [most] = (await service.CountConnections(pb.CountConnectionsRequest(max_sessions=1))).sessions
        assert (most.session_id, most.connections) == (session, 7)
    for call in (*calls, second):
        call.cancel()
    await none_left(channels[1])


@pytest.mark.parametrize("operator", [1, 2])
async def test_each_ends_connections_of_all(channels: Channels, session: str, operator: int) -> None:
    stream = ref("r", session=session)
    cursor = (await produce(stub(channels[1]), stream, "a", first=1)).cursor
    call = await attached(stub(channels[1]), SubscribeRequest(stream=stream))
    received = await Received().read(call, through=1)
    [connection] = (await listed(channels[operator], session_id=session)).connections
    await disconnect(channels[operator], connection.id)
    assert not (await listed(channels[operator], session_id=session)).connections
    failed = await failure(received.read(call))
    assert failed.short == (grpc.StatusCode.ABORTED, "DISCONNECTED", {"cursor": cursor})
    gone = await failure(disconnect(channels[operator], connection.id))
    assert gone.short == (grpc.StatusCode.NOT_FOUND, "CONNECTION_NOT_FOUND", {"connection_id": connection.id})


@pytest.mark.parametrize("connection_id", ["0123456789abcdef", "00000000000000zz", "1", "00000000000000 1"])
async def test_a_connection_that_is_at_no_worker(channels: Channels, connection_id: str) -> None:
    gone = await failure(disconnect(channels[1], connection_id))
    assert gone.short == (grpc.StatusCode.NOT_FOUND, "CONNECTION_NOT_FOUND", {"connection_id": connection_id})


async def test_each_answers_for_its_own_health(channels: Channels) -> None:
    for channel in channels.values():
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_http_tells_of_all(served: BridgeProcess, channels: Channels, session: str) -> None:
    async def ask(path: str) -> dict[str, Any]:
        # Each request has a connection, and so perhaps a worker, of its own.
        async with httpx.AsyncClient(base_url=served.http_url, timeout=20, trust_env=False) as http:
            answer = await http.get(path)
            assert answer.status_code == 200
            body: dict[str, Any] = answer.json()
            return body

    await none_left(channels[1])
    before = await ask("/streams/metrics")
    for i in range(24):
        async with httpx.AsyncClient(base_url=served.http_url, timeout=20, trust_env=False) as http:
            body = {"tokens": [{"text": "a"}, {"text": "b"}], "firstSequence": 2 * i + 1}
            path = f"/v1/sessions/{session}/models/m/responses/r:produce"
            assert (await http.post(path, json=body)).status_code == 200
    calls = [
        await attached(stub(channel), SubscribeRequest(stream=ref("r", session=session)))
        for channel in channels.values()
    ]
    for _ in range(8):
        metrics = await ask("/streams/metrics")
        assert metrics["messageCount"] - before["messageCount"] == 48
        assert (metrics["errorCount"], metrics["errorRate"]) == (0, 0)
        assert metrics["averageLatency"] > 0
        assert metrics["connections"] == {"totalConnections": 2, "activeConnections": 2, "sessionCount": 1}
        health = await ask("/streams/health")
        assert health["status"] == "healthy"
        workers = health["checks"]["workers"]["details"]
        assert (workers["total"], workers["serving"]) == (2, 2)
        assert [(one["worker"], one["serving"], one["connections"]) for one in workers["each"]] == [
            (1, True, 1),
            (2, True, 1),
        ]
        assert all(10_000_000 < one["residentBytes"] < 1_000_000_000 for one in workers["each"])
    for call in calls:
        call.cancel()
    await none_left(channels[1])


async def test_at_most_four_redis_connections_a_worker(
    channels: Channels, redis_of_workers: RedisProcess, session: str
) -> None:
    calls = []
    for worker, channel in channels.items():
        for i in range(10):
            stream = ref(f"{worker} {i}", session=session)
            await produce(stub(channel), stream, "a", first=1)
            calls.append(await attached(stub(channel), SubscribeRequest(stream=stream)))
        member = await GroupMember.join(stub(channel), membership(ref(f"{worker} 0", session=session)))
        assert (await member.message()).tokens[0].text == "a"
        calls.append(member.call)
        lifecycle: Any = LifecycleServiceStub(channel)
        watching = lifecycle.WatchStreams(WatchStreamsRequest(group="g"))
        await watching.initial_metadata()
        calls.append(watching)
    with redis_of_workers.client() as client:
        names = Counter(one["name"] for one in client.client_list())
    for call in calls:
        call.cancel()
    await none_left(channels[1])
    ours = {name: count for name, count in names.items() if name.startswith("llmbridge-")}
    assert ours == {"llmbridge-append": 2, "llmbridge-commands": 2, "llmbridge-wakeups": 2}
