"""ConnectionService: who is attached, and ending a call whether its client takes anything or not."""

import asyncio
import base64
import gc
import json
import logging
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llmbridge.v1 import connection_service_pb2 as pb
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from tests.support.calls import (
    PATIENCE_SECONDS,
    STOP,
    Received,
    attached,
    failure,
    produce,
    ref,
    stalled_channel,
    stub,
    until,
)
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")
HELD_TEXTS = [f"{i:03d}" * 5_000 for i in range(60)]
"""Far more than a client gets that does not read."""


async def listed(bridge: RunningBridge, **request: Any) -> list[pb.Connection]:
    answer = await bridge.connections.ListConnections(pb.ListConnectionsRequest(**request), timeout=PATIENCE_SECONDS)
    return list(answer.connections)


async def count(bridge: RunningBridge, **request: Any) -> pb.CountConnectionsResponse:
    answer: pb.CountConnectionsResponse = await bridge.connections.CountConnections(
        pb.CountConnectionsRequest(**request), timeout=PATIENCE_SECONDS
    )
    return answer


async def disconnect(bridge: RunningBridge, connection_id: str) -> None:
    # Far less than the clean-up would take, and no retry.
    await bridge.connections.DisconnectConnection(
        pb.DisconnectConnectionRequest(connection_id=connection_id), timeout=5
    )


async def the_one(bridge: RunningBridge, state: "pb.ConnectionState.ValueType") -> pb.Connection:
    """The only connection, as soon as it is in this state."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            [connection] = await listed(bridge)
            if connection.state == state:
                return connection
            await asyncio.sleep(0.01)


@asynccontextmanager
async def held_reader(bridge: RunningBridge) -> AsyncIterator[Any]:
    """A reader that has not taken what it was sent, so that its handler is stuck in a write."""
    async with stalled_channel(bridge.address) as channel:
        call = await attached(stub(channel), SubscribeRequest(stream=STREAM))
        for i, text in enumerate(HELD_TEXTS):
            await produce(bridge.bridge, STREAM, text, first=i + 1)
        yield call


async def test_a_connection_is_told_in_full(bridge: RunningBridge) -> None:
    before = time.time_ns() // 1_000_000
    cursor = (await produce(bridge.bridge, STREAM, "a", "b", first=1)).cursor
    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    attached_by = time.time_ns() // 1_000_000 + 1
    await Received().read(call, through=2)
    connection = await the_one(bridge, pb.CONNECTION_STATE_LIVE)
    assert len(connection.id) == 16
    assert connection.stream == STREAM
    assert connection.transport == pb.TRANSPORT_GRPC
    assert connection.peer.startswith("ipv4:127.0.0.1:")
    # Two clocks of this machine, one of them with a resolution of 1 ms.
    assert before - 2 <= connection.since_ms <= attached_by + 2
    assert connection.since_ms <= connection.last_activity_ms <= time.time_ns() // 1_000_000 + 2
    assert (connection.cursor, connection.lag) == (cursor, 0)
    assert (connection.group, connection.consumer) == ("", "")
    call.cancel()
    await until(lambda: bridge.core.idle)
    assert await listed(bridge) == []
    assert await count(bridge) == pb.CountConnectionsResponse()


@pytest.mark.parametrize(
    ("metadata", "transport"),
    [
        ((), pb.TRANSPORT_GRPC),
        ((("llmbridge-transport", "sse"),), pb.TRANSPORT_SSE),
        ((("llmbridge-transport", "websocket"),), pb.TRANSPORT_WEBSOCKET),
        ((("llmbridge-transport", "carrier pigeon"),), pb.TRANSPORT_GRPC),
    ],
)
async def test_the_gateway_tells_how_its_client_came(
    bridge: RunningBridge, metadata: tuple[tuple[str, str], ...], transport: int
) -> None:
    call = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM), metadata=metadata)
    await call.initial_metadata()
    [connection] = await listed(bridge)
    assert connection.transport == transport
    call.cancel()


async def test_heartbeats_are_activity(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, heartbeat_ms=100) as bridge:
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        first = await the_one(bridge, pb.CONNECTION_STATE_LIVE)
        received = Received()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await listed(bridge))[0].last_activity_ms <= first.last_activity_ms:
                await received.beat(call)
        [now] = await listed(bridge)
        assert (now.id, now.since_ms, now.cursor) == (first.id, first.since_ms, "")
        call.cancel()


async def test_pages_and_counts(bridge: RunningBridge) -> None:
    sessions = ["a", "b", "a", "c", "a", "b", "a"]
    calls = [
        await attached(bridge.bridge, SubscribeRequest(stream=ref(str(i), session=session)))
        for i, session in enumerate(sessions)
    ]

    def responses(page: pb.ListConnectionsResponse) -> list[str]:
        return [connection.stream.response_id for connection in page.connections]

    ask = bridge.connections.ListConnections
    first = await ask(pb.ListConnectionsRequest(page_size=3))
    assert responses(first) == ["0", "1", "2"]
    # One of those to come leaves, a new one comes: all others are listed once.
    calls[3].cancel()
    await until(lambda: len(bridge.core._connections) == 6)
    calls.append(await attached(bridge.bridge, SubscribeRequest(stream=ref("7", session="b"))))
    second = await ask(pb.ListConnectionsRequest(page_size=3, page_token=first.next_page_token))
    assert responses(second) == ["4", "5", "6"]
    third = await ask(pb.ListConnectionsRequest(page_size=3, page_token=second.next_page_token))
    assert (responses(third), third.next_page_token) == (["7"], "")

    of_a = await ask(pb.ListConnectionsRequest(session_id="a", page_size=2))
    rest = await ask(pb.ListConnectionsRequest(session_id="a", page_size=2, page_token=of_a.next_page_token))
    # A full page that is the last says so.
    assert (responses(of_a) + responses(rest), rest.next_page_token) == (["0", "2", "4", "6"], "")
    assert await listed(bridge, session_id="nobody") == []

    totals = await count(bridge)
    assert (totals.total, totals.members, totals.session_count) == (7, 0, 2)
    assert [(one.session_id, one.connections) for one in totals.sessions] == [("a", 4), ("b", 3)]
    short = await count(bridge, max_sessions=1)
    assert (short.session_count, [one.session_id for one in short.sessions]) == (2, ["a"])
    for call in calls:
        call.cancel()


@pytest.mark.parametrize(
    ("place", "session"),
    [(["connections", "", 1, "another process"], ""), (["open", "", 1, ""], ""), (["connections", "a", 1, ""], "b")],
)
async def test_a_page_token_of_another_listing(bridge: RunningBridge, place: list[Any], session: str) -> None:
    token = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
    failed = await failure(listed(bridge, session_id=session, page_token=token))
    assert failed.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": "page_token"})


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("ListConnections", pb.ListConnectionsRequest(page_size=1_001), "page_size"),
        ("ListConnections", pb.ListConnectionsRequest(session_id="\n"), "session_id"),
        ("CountConnections", pb.CountConnectionsRequest(max_sessions=1_001), "max_sessions"),
        ("DisconnectConnection", pb.DisconnectConnectionRequest(), "connection_id"),
    ],
)
async def test_fields_that_are_refused(bridge: RunningBridge, method: str, request_: Any, field: str) -> None:
    failed = await failure(getattr(bridge.connections, method)(request_))
    assert failed.short == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", {"field": field})


async def test_disconnect_of_one_that_waits(bridge: RunningBridge) -> None:
    cursor = (await produce(bridge.bridge, STREAM, "a", first=1)).cursor
    calls = [await attached(bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(2)]
    received = [await Received().read(call, through=1) for call in calls]
    first, second = await listed(bridge)
    await disconnect(bridge, first.id)
    assert [one.id for one in await listed(bridge)] == [second.id]
    failed = await failure(received[0].read(calls[0]))
    assert failed.short == (grpc.StatusCode.ABORTED, "DISCONNECTED", {"cursor": cursor})
    assert failed.retry_ms is None
    gone = await failure(disconnect(bridge, first.id))
    assert gone.short == (grpc.StatusCode.NOT_FOUND, "CONNECTION_NOT_FOUND", {"connection_id": first.id})
    # The other one feels nothing, and who was sent away may come back.
    await produce(bridge.bridge, STREAM, "b", first=2, completion=STOP)
    assert (await received[1].read(calls[1])).text == "ab"
    again = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=cursor))
    assert (await received[0].read(again)).text == "ab"


async def test_disconnect_while_redis_is_away(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as bridge:
        cursor = (await produce(bridge.bridge, STREAM, "a", first=1)).cursor
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        received = await Received().read(call, through=1)
        own_redis.kill()
        [connection] = await listed(bridge)
        await disconnect(bridge, connection.id)
        failed = await failure(received.read(call))
        assert failed.short == (grpc.StatusCode.ABORTED, "DISCONNECTED", {"cursor": cursor})


async def test_disconnect_of_one_that_takes_nothing(bridge: RunningBridge) -> None:
    async with held_reader(bridge) as call:
        held = await the_one(bridge, pb.CONNECTION_STATE_HELD)
        assert 0 < held.lag < len(HELD_TEXTS)
        assert held.last_activity_ms >= held.since_ms
        [connection] = bridge.core._connections._connections.values()
        reader = weakref.ref(connection._attendee)
        await disconnect(bridge, held.id)
        # At once: nobody has read anything yet.
        assert bridge.core.idle
        assert bridge.core._gate._inside == 0
        del connection
        gc.collect()
        assert reader() is None
        # Whoever wakes up gets all that was under way, and then is told: nothing is lost, nothing comes twice.
        received = Received()
        failed = await failure(received.read(call))
        assert failed.short == (grpc.StatusCode.ABORTED, "DISCONNECTED", {"cursor": held.cursor})
        assert received.cursor == held.cursor
    await produce(bridge.bridge, STREAM, first=len(HELD_TEXTS) + 1, completion=STOP)
    on = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=received.cursor))
    assert (await received.read(on)).texts == HELD_TEXTS


async def test_one_that_was_let_go_may_leave_without_a_word(
    bridge: RunningBridge, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = asyncio.all_tasks()
    async with held_reader(bridge) as call:
        held = await the_one(bridge, pb.CONNECTION_STATE_HELD)
        await disconnect(bridge, held.id)
        call.cancel()
        await until(lambda: not {task.get_name() for task in asyncio.all_tasks() - tasks if "Exceptions" in repr(task)})
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_one_that_was_let_go_does_not_hold_up_a_drain(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge, held_reader(bridge):
        held = await the_one(bridge, pb.CONNECTION_STATE_HELD)
        await disconnect(bridge, held.id)
        begun = time.monotonic()
        bridge.stop.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await bridge.ended
        assert time.monotonic() - begun < bridge.settings.drain_timeout_ms / 1_500


@pytest.mark.parametrize("heartbeat_ms", [100, 60_000])
async def test_only_who_takes_nothing_is_idle(shared_redis: RedisProcess, key_prefix: str, heartbeat_ms: int) -> None:
    settings: dict[str, Any] = {"heartbeat_ms": heartbeat_ms, "connection_cleanup_interval": 1_000}
    async with running_bridge(shared_redis.url, key_prefix=key_prefix, **settings) as bridge:
        quiet = await attached(bridge.bridge, SubscribeRequest(stream=ref("quiet")))
        reading = asyncio.create_task(Received().read(quiet))
        [quiet_one] = await listed(bridge)
        begun = time.monotonic()
        async with held_reader(bridge) as call:
            await until(lambda: len(bridge.core._connections) == 1)
            # Not before the interval is over; on a busy machine it may be when the last record is produced.
            assert time.monotonic() - begun > 0.9
            received = Received()
            failed = await failure(received.read(call))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "CONNECTION_IDLE")
            assert failed.retry_ms
            assert received.cursor
        # Quiet for as long, and longer.
        assert [one.id for one in await listed(bridge)] == [quiet_one.id]
        on = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=received.cursor))
        assert (await received.read(on, through=len(HELD_TEXTS))).texts == HELD_TEXTS
        on.cancel()
        await produce(bridge.bridge, ref("quiet"), "a", first=1, completion=STOP)
        assert (await reading).text == "a"
