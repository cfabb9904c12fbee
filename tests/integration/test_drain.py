"""SIGTERM: the bridge says so, sends its readers on with their cursor, finishes what is under way, and ends."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmbridge.log.connections import Connector
from llmbridge.log.link import Link
from llmbridge.log.wakeups import WakeUps
from llmbridge.v1.bridge_service_pb2 import POSITION_LATEST, SubscribeRequest
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import (
    PATIENCE_SECONDS,
    STOP,
    Failure,
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
DRAINING = (grpc.StatusCode.UNAVAILABLE, "DRAINING")

Start = Callable[..., BridgeProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts bridge processes and sees that none is left."""
    started: list[BridgeProcess] = []

    def start(redis_url: str, key_prefix: str, **environment: str) -> BridgeProcess:
        process = BridgeProcess({"REDIS_URL": redis_url, "LLMBRIDGE_KEY_PREFIX": key_prefix, **environment}).start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


async def exit_code(process: BridgeProcess) -> int:
    return await asyncio.to_thread(process.process.wait, PATIENCE_SECONDS)


def sent_on(failed: Failure, cursor: str) -> None:
    assert (failed.code, failed.reason) == DRAINING
    assert failed.metadata == {"cursor": cursor}
    assert failed.trailers["llmbridge-cursor"] == cursor
    assert failed.retry_ms


async def test_readers_go_on_elsewhere(
    bridge: RunningBridge, start: Start, shared_redis: RedisProcess, key_prefix: str
) -> None:
    first = start(shared_redis.url, key_prefix)
    async with grpc.aio.insecure_channel(first.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        cursor = (await produce(stub(channel), STREAM, "a", "b", first=1)).cursor
        reader, new, waiting = Received(), Received(last=2, cursor=cursor), Received()
        calls = [
            await attached(stub(channel), SubscribeRequest(stream=STREAM)),
            await attached(stub(channel), SubscribeRequest(stream=STREAM, position=POSITION_LATEST)),
            await attached(stub(channel), SubscribeRequest(stream=ref("not there yet"))),
        ]
        await reader.read(calls[0], through=2)

        first.process.send_signal(signal.SIGTERM)
        sent_on(await failure(reader.read(calls[0])), reader.cursor)
        sent_on(await failure(new.read(calls[1])), cursor)
        sent_on(await failure(waiting.read(calls[2])), "")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await exit_code(first) == 0

    on = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=reader.cursor))
    await produce(bridge.bridge, STREAM, "c", first=3, completion=STOP)
    assert (await reader.read(on)).text == "abc"


async def test_what_is_under_way_is_finished_and_what_comes_is_refused(
    own_redis: RedisProcess, key_prefix: str
) -> None:
    assert own_redis.process is not None
    async with running_bridge(own_redis.url, key_prefix=key_prefix, redis_timeout_ms=10_000) as running:
        await produce(running.bridge, STREAM, "a", first=1)
        os.kill(own_redis.process.pid, signal.SIGSTOP)
        try:
            under_way = asyncio.create_task(produce(running.bridge, STREAM, "b", first=2))
            await until(lambda: running.core._gate._inside == 1)
            running.stop.set()
            await until(lambda: running.core._gate._closed)
            for call in (
                produce(running.bridge, STREAM, "c", first=3),
                Received().read(running.bridge.Subscribe(SubscribeRequest(stream=STREAM))),
            ):
                failed = await failure(call)
                assert (failed.code, failed.reason, failed.metadata) == (*DRAINING, {})
            assert not under_way.done()
        finally:
            os.kill(own_redis.process.pid, signal.SIGCONT)
        assert (await under_way).last_sequence == 2
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running.ended


async def test_a_reader_that_takes_nothing_does_not_hold_it_up_for_ever(
    bridge: RunningBridge, start: Start, shared_redis: RedisProcess, key_prefix: str
) -> None:
    process = start(shared_redis.url, key_prefix, LLMBRIDGE_DRAIN_TIMEOUT_MS="200")
    texts = [f"{i:03d}" * 5_000 for i in range(60)]
    async with stalled_channel(process.address) as channel:
        call = await attached(stub(channel), SubscribeRequest(stream=STREAM))
        for i, text in enumerate(texts):
            await produce(bridge.bridge, STREAM, text, first=i + 1)
        process.process.send_signal(signal.SIGTERM)
        assert await exit_code(process) == 0
        received = Received()
        with pytest.raises(grpc.aio.AioRpcError) as broken:
            await received.read(call)
        assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    on = bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM, after_cursor=received.cursor))
    assert (await received.read(on, through=60)).texts == texts
    on.cancel()


async def test_two_at_once_are_as_one(start: Start, shared_redis: RedisProcess, key_prefix: str) -> None:
    process = start(shared_redis.url, key_prefix)
    process.process.send_signal(signal.SIGTERM)
    process.process.send_signal(signal.SIGTERM)
    assert await exit_code(process) == 0


async def test_it_drains_also_while_redis_is_away(own_redis: RedisProcess, key_prefix: str) -> None:
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as running:
        cursor = (await produce(running.bridge, STREAM, "a", first=1)).cursor
        call = await attached(running.bridge, SubscribeRequest(stream=STREAM))
        reader = await Received().read(call, through=1)
        own_redis.kill()
        running.stop.set()
        sent_on(await failure(reader.read(call)), cursor)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running.ended


@pytest.mark.parametrize("turns", range(8))
async def test_it_ends_also_when_redis_breaks_at_that_very_moment(
    shared_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """On Ctrl-C an embedded Redis goes in the same turn of the loop; a task group then forgets the cancellation."""
    wake_ups = WakeUps(Connector(shared_redis.url, PATIENCE_SECONDS))
    links: asyncio.Queue[Link] = asyncio.Queue()
    open_ = Connector.open

    async def open_and_tell(*arguments: Any) -> Link:
        links.put_nowait(link := await open_(*arguments))
        return link

    monkeypatch.setattr(Connector, "open", open_and_tell)
    running = asyncio.create_task(wake_ups.run())
    link = await links.get()
    link.end(ConnectionError("gone"))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait([running], timeout=PATIENCE_SECONDS)
    running.cancel()
    await asyncio.wait([running])
    assert done
