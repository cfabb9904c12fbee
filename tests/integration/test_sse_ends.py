"""How Server-Sent Events end when the stream does not: a browser comes back where that helps, and only there."""

import asyncio
import time

import grpc

from llmbridge.gateway.access import Access
from llmbridge.gateway.problems import Problem
from llmbridge.v1.connection_service_pb2 import (
    TRANSPORT_SSE,
    DisconnectConnectionRequest,
    ListConnectionsRequest,
)
from llmbridge.v1.stream_admin_service_pb2 import DeleteStreamRequest, TrimStreamRequest
from tests.support.calls import PATIENCE_SECONDS, STOP, produce, ref, until
from tests.support.event_stream import BROWSER, events_path, read_to_end, reading
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.running_gateway import RunningGateway, running_gateway


async def stops(gateway: RunningGateway, last_id: str, path: str = events_path()) -> None:
    """The reconnect must be answered with 204, at which EventSource stops."""
    answer = await gateway.http.get(path, headers=BROWSER | {"last-event-id": last_id})
    assert (answer.status_code, answer.content) == (204, b"")


async def test_lost_history_is_an_event_and_then_the_end(bridge: RunningBridge, gateway: RunningGateway) -> None:
    for number in range(1, 5):
        await produce(bridge.bridge, ref("r"), str(number), first=number)
    await bridge.admin.TrimStream(TrimStreamRequest(stream=ref("r"), keep_tokens=2))
    stream = await read_to_end(gateway.http, events_path())
    assert stream.names == ["error"]
    error = stream.events[0].data
    assert (error["type"], error["code"], error["status"], error["reason"]) == ("error", 11, "OUT_OF_RANGE", "TRIMMED")
    assert error["message"]
    await stops(gateway, stream.last_id)
    async with reading(gateway.http, events_path(), cursor=error["earliestCursor"]) as rest:
        await rest.until(lambda: rest.sequences == [3, 4])


async def test_history_that_is_lost_while_it_is_read(bridge: RunningBridge, gateway: RunningGateway) -> None:
    async with reading(gateway.http, events_path()) as stream:
        await produce(bridge.bridge, ref("r"), "a", first=1)
        await stream.until(lambda: stream.sequences == [1])
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("r")))
        await stream.to_end()
    assert stream.names == ["connected", "token", "error"]
    assert stream.events[-1].data["reason"] == "EXPIRED"
    assert stream.events[-1].data["earliestCursor"] == ""
    await stops(gateway, stream.last_id)


async def test_a_place_before_the_end_is_not_taken_for_that_of_another_stream(
    bridge: RunningBridge, gateway: RunningGateway
) -> None:
    await produce(bridge.bridge, ref("r"), "a", "b", first=1, completion=STOP)
    stream = await read_to_end(gateway.http, events_path())
    place = stream.events[1].id or ""
    complete = stream.events[2].id or ""
    assert place == f"{complete}~"
    assert (await read_to_end(gateway.http, events_path(), place)).names == ["connected", "complete"]
    for texts, completion in ((["a", "b"], STOP), (["a", "b", "c"], STOP), (["a", "b"], None), (None, None)):
        await bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("r")))
        if texts is None:
            await stops_after(gateway, place, "EXPIRED")
        else:
            await produce(bridge.bridge, ref("r"), *texts, first=1, completion=completion)
            await stops_after(gateway, place, "RESTARTED")


async def stops_after(gateway: RunningGateway, place: str, reason: str) -> None:
    resumed = await read_to_end(gateway.http, events_path(), place)
    assert resumed.names == ["error"]
    assert resumed.events[0].data["reason"] == reason
    await stops(gateway, resumed.last_id)


async def test_an_operators_disconnect_is_the_end(bridge: RunningBridge, gateway: RunningGateway) -> None:
    async with reading(gateway.http, events_path()) as stream:
        await stream.until(lambda: stream.names == ["connected"])
        [connection] = (await bridge.connections.ListConnections(ListConnectionsRequest())).connections
        assert connection.transport == TRANSPORT_SSE
        await bridge.connections.DisconnectConnection(DisconnectConnectionRequest(connection_id=connection.id))
        await stream.to_end()
    assert stream.names == ["connected", "error"]
    assert stream.events[-1].data["reason"] == "DISCONNECTED"
    await stops(gateway, stream.last_id)


async def test_the_bridges_drain_ends_the_response_cleanly(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, beside=True) as second,
        running_gateway(second.address) as elsewhere,
    ):
        async with (
            running_bridge(shared_redis.url, key_prefix=key_prefix, beside=True) as first,
            running_gateway(first.address) as gateway,
            reading(gateway.http, events_path()) as stream,
        ):
            await produce(first.bridge, ref("r"), "a", first=1)
            await stream.until(lambda: stream.sequences == [1])
            first.stop.set()
            await stream.to_end()
            assert stream.names == ["connected", "token"]
            assert len(stream.retries) == 2
            away = await read_to_end(gateway.http, events_path(), stream.last_id)
            assert away.names == []
            [retry] = away.retries
            assert retry >= 1_000
            for_programs = await gateway.http.get(events_path())
            assert for_programs.status_code == 503
        await produce(second.bridge, ref("r"), "b", first=2, completion=STOP)
        rest = await read_to_end(elsewhere.http, events_path(), stream.last_id)
        assert rest.text == "b"


async def test_the_gateways_drain_ends_the_response_cleanly(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address) as gateway:
        opened = asyncio.Event()

        async def read() -> list[str]:
            async with reading(gateway.http, events_path()) as stream:
                await stream.until(lambda: stream.names == ["connected"])
                opened.set()
                await stream.to_end()
            return stream.names

        async with asyncio.TaskGroup() as group:
            page = group.create_task(read())
            await opened.wait()
            gateway.core.link.drain()
            assert await asyncio.wait_for(page, PATIENCE_SECONDS) == ["connected"]


async def test_a_bridge_that_is_away() -> None:
    async with running_gateway("127.0.0.1:1") as gateway:
        page = await read_to_end(gateway.http, events_path(), "1-1-00000000")
        assert (page.names, len(page.retries), len(page.comments)) == ([], 1, 1)
        alias = await read_to_end(gateway.http, "/sse/stream/s", modelId="m", responseId="r")
        assert (alias.names, len(alias.retries)) == ([], 1)
        program = await gateway.http.get(events_path())
        assert (program.status_code, program.headers["retry-after"]) == (503, "1")
        assert program.json()["code"] == 14
        assert program.json()["message"] == "the bridge can't be reached, or does not answer"
        asked = await gateway.http.get("/v1/sessions/s/streams")
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "1")


async def test_a_full_bridge_is_come_back_to(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, max_readers=1) as bridge,
        running_gateway(bridge.address) as gateway,
        reading(gateway.http, events_path()) as stream,
    ):
        await stream.until(lambda: stream.names == ["connected"])
        page = await read_to_end(gateway.http, events_path())
        assert (page.names, len(page.retries)) == ([], 1)
        program = await gateway.http.get(events_path())
        assert (program.status_code, program.headers["retry-after"]) == (429, "1")


async def test_heartbeats_are_comments(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with (
        running_bridge(shared_redis.url, key_prefix=key_prefix, heartbeat_ms=100) as bridge,
        running_gateway(bridge.address) as gateway,
        reading(gateway.http, events_path()) as stream,
    ):
        await stream.until(lambda: len(stream.comments) >= 3)
        assert stream.names == ["connected"]
        assert set(stream.comments) == {"heartbeat"}


async def test_a_closed_tab_frees_everything_within_a_second(bridge: RunningBridge, gateway: RunningGateway) -> None:
    took = []
    for _ in range(3):
        async with reading(gateway.http, events_path()) as stream:
            await stream.until(lambda: stream.names == ["connected"])
            await until(lambda: not bridge.core.idle)
            assert gateway.core.link.reads == 1
            began = time.monotonic()
        await until(lambda: gateway.core.link.reads == 0 and bridge.core.idle)
        took.append(time.monotonic() - began)
    # On a busy machine not each time.
    assert min(took) < 1


class _Closed(Access):
    async def check(self, request: object, scope: str, stream: object) -> None:
        raise Problem(grpc.StatusCode.UNAUTHENTICATED, "who are you?")


async def test_access_is_asked_first(bridge: RunningBridge) -> None:
    async with running_gateway(bridge.address, access=_Closed()) as gateway:
        for path in (events_path(), "/sse/stream/s", "/api/sse/stream/s?modelId=m&responseId=r"):
            answer = await gateway.http.get(path, headers=BROWSER)
            assert (answer.status_code, answer.json()["message"]) == (401, "who are you?")
