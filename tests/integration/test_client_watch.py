"""The client's watch: events that come again until they are acknowledged, over bridges that come and go."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from llmbridge.client import (
    Client,
    FinishReason,
    GroupNotFound,
    GroupSettingsDiffer,
    HistoryLost,
    RetryPolicy,
    StreamName,
    Unavailable,
    Watch,
)
from llmbridge.client.groups import GroupName
from llmbridge.v1 import lifecycle_service_pb2 as pb
from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceServicer, add_LifecycleServiceServicer_to_server
from tests.support.calls import PATIENCE_SECONDS, until
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.1, give_up_after=5.0)
FEED = GroupName(None, "g")


@pytest.fixture
async def client(bridge: RunningBridge) -> AsyncIterator[Client]:
    async with Client(bridge.address, retry=QUICK) as client:
        yield client


async def answer(client: Client, response: str, text: str = "hello") -> None:
    async with client.write("s", "m", response) as writer:
        await writer.text(text)


async def taken(watch: Watch, count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await anext(watch) for _ in range(count)]


async def test_events_tell_what_happened_and_are_settled(client: Client) -> None:
    await answer(client, "r")
    async with client.watch("g") as watch:
        created, completed = await taken(watch, 2)
        assert (created.completed, created.completion, created.finish_reason) == (False, None, None)
        assert completed.stream == StreamName("s", "m", "r")
        assert completed.finish_reason is FinishReason.STOP
        assert completed.info.tokens == 1
        read = [message async for message in client.subscribe(completed.stream, after_cursor=completed.start_cursor)]
        assert ("".join(message.text for message in read), read[-1].cursor) == ("hello", completed.cursor)
        assert await created.acknowledge() is True
        assert await created.acknowledge() is False
        assert await completed.extend() is True
        assert await completed.reject() is True
        [again] = await taken(watch, 1)
        assert (again.cursor, again.info.delivery_attempt) == (completed.cursor, 2)
        assert await completed.extend() is False
        assert await again.reject(dead_letter=True, reason="enough") is True
        assert [letter.reason async for letter in client.groups.dead_letters()] == ["enough"]
        assert (await client.groups.get(FEED)).pending == 0
        assert watch.missed == 0


async def test_a_stream_that_is_gone_is_an_error_and_not_a_wait(client: Client) -> None:
    await answer(client, "gone")
    await answer(client, "anew")
    await client.streams.delete("s", "m", "gone")
    await client.streams.delete("s", "m", "anew")
    await answer(client, "anew", "another")
    reasons = {}
    async with client.watch("g") as watch:
        for event in await taken(watch, 6):
            try:
                async for _ in client.subscribe(event.stream, after_cursor=event.start_cursor):
                    pass
            except HistoryLost as error:
                reasons[event.stream.response_id] = error.reason
    assert reasons == {"gone": "EXPIRED", "anew": "RESTARTED"}


async def test_a_cancelled_wait_gives_nothing_back(client: Client) -> None:
    await answer(client, "r")
    async with client.watch("g") as watch:
        events = await taken(watch, 2)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watch), 0.05)
        await answer(client, "next")
        later = await taken(watch, 2)
        assert {event.info.delivery_attempt for event in later} == {1}
        for event in (*events, *later):
            assert await event.acknowledge() is True


async def test_closing_gives_back_and_going_on_gets_it_again(client: Client) -> None:
    await answer(client, "r")
    watch = client.watch("g")
    await taken(watch, 1)
    await watch.aclose()
    events = await taken(watch, 2)
    assert {event.info.delivery_attempt for event in events} == {2}
    await watch.aclose()


async def test_a_watch_that_nobody_refers_to_ends_its_call(bridge: RunningBridge, client: Client) -> None:
    watch = client.watch("g")
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: not bridge.core.idle)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not bridge.core.idle
    del watch, waiting
    gc.collect()
    await until(lambda: bridge.core.idle)


async def test_a_deleted_group_is_told_and_going_on_makes_it_anew(client: Client) -> None:
    await answer(client, "r")
    async with client.watch("g") as watch:
        await taken(watch, 2)
        await client.groups.delete(FEED)
        with pytest.raises(GroupNotFound):
            await taken(watch, 1)
        assert {event.info.delivery_attempt for event in await taken(watch, 2)} == {1}


async def test_other_settings_are_told(client: Client) -> None:
    await answer(client, "r")
    async with client.watch("g", ack_deadline_ms=1_000) as watch:
        await taken(watch, 2)
        with pytest.raises(GroupSettingsDiffer) as caught:
            await taken(client.watch("g", ack_deadline_ms=2_000), 1)
        assert caught.value.ack_deadline_ms == 1_000


async def test_another_bridge_takes_over(shared_redis: RedisProcess, key_prefix: str) -> None:
    settings: dict[str, Any] = {"beside": True, "key_prefix": key_prefix, "drain_timeout_ms": 1_000}
    async with running_bridge(shared_redis.url, **settings) as second:
        async with running_bridge(shared_redis.url, **settings) as first:
            client = Client(f"{first.address},{second.address}", retry=QUICK)
            await client.__aenter__()
            watch = client.watch("g")
            await answer(client, "0")
            events = await taken(watch, 2)
        # The first has drained: what was being worked on is settled at the second, and comes no more.
        for event in events:
            assert await event.acknowledge() is True
        await answer(client, "1")
        assert {event.stream.response_id for event in await taken(watch, 2)} == {"1"}
        await watch.aclose()
        await client.__aexit__(None, None, None)


async def test_without_a_bridge_it_gives_up_when_it_should(shared_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(shared_redis.url, key_prefix=key_prefix) as bridge:
        address = bridge.address
    async with Client(address, retry=QUICK) as client, client.watch("g", retry_for=0.3) as watch:
        with pytest.raises(Unavailable):
            await taken(watch, 1)


async def test_only_one_task_may_iterate(client: Client) -> None:
    async with client.watch("g") as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one task"):
            await anext(watch)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


class _Silent(LifecycleServiceServicer):
    """Says nothing in its first calls, then sends one event."""

    def __init__(self, silent_calls: int) -> None:
        self.calls = 0
        self._silent_calls = silent_calls

    async def WatchStreams(self, request: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        del request
        self.calls += 1
        if self.calls > self._silent_calls:
            await context.write(pb.WatchStreamsResponse(events=[pb.LifecycleEvent(cursor="c")], missed=7))
        await asyncio.Event().wait()


async def test_a_silent_bridge_is_left(caplog: pytest.LogCaptureFixture) -> None:
    server, silent = grpc.aio.server(), _Silent(2)
    add_LifecycleServiceServicer_to_server(silent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with (
            Client(f"127.0.0.1:{port}", retry=QUICK) as client,
            client.watch("g", silence_timeout=0.5) as watch,
        ):
            [event] = await taken(watch, 1)
            assert (event.cursor, watch.missed, silent.calls) == ("c", 7, 3)
            assert "7 events are gone" in caplog.text
    finally:
        await server.stop(None)
