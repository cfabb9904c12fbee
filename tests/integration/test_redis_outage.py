"""Redis away, frozen, or cutting connections: calls fail fast and clearly, readers stay and go on, nothing repeats."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmbridge.v1.bridge_service_pb2 import POSITION_LATEST, ProduceResponse, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import GetStreamRequest, ListStreamsRequest
from llmbridge.v1.token_pb2 import Completion
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, failure_of, produce, ref, until
from tests.support.log_surgery import LogSurgery
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge, running_bridge

STREAM = ref("r")
CONNECTIONS = ("append", "commands", "wakeups")
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
FAST_SECONDS = 5.0
"""Without waiting for an answer of Redis, or for the caller's own deadline; with room for a busy machine."""


@pytest.fixture
async def own_bridge(own_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    """A bridge on a Redis that the test may hurt."""
    async with running_bridge(own_redis.url, key_prefix=key_prefix, heartbeat_ms=500) as running:
        yield running


@pytest.fixture
async def hasty_bridge(own_redis: RedisProcess, key_prefix: str) -> AsyncIterator[RunningBridge]:
    """One that soon loses patience with a Redis that does not answer."""
    async with running_bridge(own_redis.url, key_prefix=key_prefix, heartbeat_ms=500, redis_timeout_ms=500) as running:
        yield running


async def produce_surely(
    bridge: RunningBridge, text: str, first: int, completion: Completion | None = None
) -> ProduceResponse:
    """Produce a text, or a completion, as a client does that retries what is UNAVAILABLE, after the time it is told."""
    texts = () if completion else (text,)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await produce(bridge.bridge, STREAM, *texts, first=first, completion=completion)
            except grpc.aio.AioRpcError as error:
                failed = failure_of(error)
                assert failed.code is UNAVAILABLE
                assert failed.retry_ms is not None
                await asyncio.sleep(failed.retry_ms / 1000)


def kill_connections(redis: RedisProcess, purpose: str) -> int:
    """Have Redis close the bridge's connections of this purpose; tells how many there were."""
    with redis.client() as client:
        found = [entry for entry in client.client_list() if entry["name"] == f"llmbridge-{purpose}"]
        for entry in found:
            client.client_kill_filter(_id=entry["id"])
    return len(found)


@asynccontextmanager
async def over_and_over(act: Callable[[], object], pause_seconds: float) -> AsyncIterator[None]:
    """Act all the time while the context lasts."""

    async def loop() -> None:
        while True:
            act()
            await asyncio.sleep(pause_seconds)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def health_until(watch: Any, status: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await watch.read()).status != status:
            pass


async def test_redis_killed_and_restarted(own_bridge: RunningBridge, own_redis: RedisProcess) -> None:
    watch = health_pb2_grpc.HealthStub(own_bridge.channel).Watch(health_pb2.HealthCheckRequest())
    await health_until(watch, SERVING)
    cursor = (await produce(own_bridge.bridge, STREAM, "a", first=1)).cursor
    calls = [
        await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM)),
        await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM, after_cursor=cursor)),
        await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM, position=POSITION_LATEST)),
        await attached(own_bridge.bridge, SubscribeRequest(stream=ref("not there yet"))),
    ]
    all_of_it, *rest, waiting = Received(), Received(last=1, cursor=cursor), Received(last=1, cursor=cursor), Received()
    await all_of_it.read(calls[0], through=1)

    own_redis.kill()
    for _ in range(3):
        began = time.monotonic()
        failed = await failure(produce(own_bridge.bridge, STREAM, "b", first=2))
        assert time.monotonic() - began < FAST_SECONDS
        assert failed.code is UNAVAILABLE
        assert failed.reason in ("REDIS_UNAVAILABLE", "APPEND_OUTCOME_UNKNOWN")
        assert failed.retry_ms
    assert failed.reason == "REDIS_UNAVAILABLE"
    for call in (
        own_bridge.admin.GetStream(GetStreamRequest(stream=STREAM)),
        Received().read(own_bridge.bridge.Subscribe(SubscribeRequest(stream=ref("another")))),
    ):
        failed = await failure(call)
        assert failed.code is UNAVAILABLE
        assert failed.retry_ms
    await health_until(watch, NOT_SERVING)
    # The attached readers are still there, and are told so.
    for reader, call in zip((all_of_it, *rest, waiting), calls, strict=True):
        await reader.beat(call)

    own_redis.start()
    await health_until(watch, SERVING)
    await produce_surely(own_bridge, "b", 2)
    for i in range(3, 10):
        await produce(own_bridge.bridge, STREAM, f"{i}", first=i)
    await produce(own_bridge.bridge, STREAM, first=10, completion=STOP)
    await produce(own_bridge.bridge, ref("not there yet"), "there", first=1, completion=STOP)
    assert (await all_of_it.read(calls[0])).text == "ab3456789"
    for reader, call in zip(rest, calls[1:3], strict=True):
        assert (await reader.read(call)).text == "b3456789"
    assert (await waiting.read(calls[3])).text == "there"
    watch.cancel()


async def test_redis_restarted_again_and_again_while_tokens_flow(
    own_bridge: RunningBridge, own_redis: RedisProcess
) -> None:
    calls = [await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(5)]
    readings = [asyncio.create_task(Received().read(call)) for call in calls]
    for i in range(1, 91):
        if i % 30 == 15:
            own_redis.kill()
            own_redis.start()
        await produce_surely(own_bridge, f"{i} ", i)
    await produce(own_bridge.bridge, STREAM, first=91, completion=STOP)
    for reading in readings:
        assert (await reading).text == "".join(f"{i} " for i in range(1, 91))


async def test_frozen_redis(hasty_bridge: RunningBridge, own_redis: RedisProcess) -> None:
    """It accepts commands and answers nothing: the outcome is unknown within the timeout, and a retry settles it."""
    call = await attached(hasty_bridge.bridge, SubscribeRequest(stream=STREAM))
    await produce_surely(hasty_bridge, "a", 1)
    received = await Received().read(call, through=1)
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        failed = await failure(produce(hasty_bridge.bridge, STREAM, "b", first=2))
        assert time.monotonic() - began < FAST_SECONDS
        assert failed.short == (UNAVAILABLE, "APPEND_OUTCOME_UNKNOWN", {})
        assert failed.retry_ms
        await received.beat(call)
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)
    assert (await produce_surely(hasty_bridge, "b", 2)).last_sequence == 2
    await produce_surely(hasty_bridge, "", 3, STOP)
    assert (await received.read(call)).text == "ab"


async def test_while_one_attempt_hangs_nobody_else_waits(own_bridge: RunningBridge, own_redis: RedisProcess) -> None:
    lane: Any = own_bridge.core._append_log._lanes._only
    breaker = lane.wire.exchange.breaker
    await produce(own_bridge.bridge, STREAM, "a", first=1)
    own_redis.kill()
    for _ in range(2):
        await failure(produce(own_bridge.bridge, STREAM, "b", first=2))
    assert breaker.failures > 0
    own_redis.start()
    # The next attempt hangs until Redis is killed.
    own_redis.freeze()
    await asyncio.sleep(breaker.pause_left + 0.01)
    trying = asyncio.create_task(failure(produce(own_bridge.bridge, STREAM, "b", first=2)))
    await until(lambda: breaker._trying)
    for _ in range(5):
        assert (await failure(produce(own_bridge.bridge, STREAM, "b", first=2))).reason == "REDIS_UNAVAILABLE"
    assert not trying.done()
    own_redis.kill()
    assert (await trying).reason == "REDIS_UNAVAILABLE"
    own_redis.start()
    assert (await produce_surely(own_bridge, "b", 2)).last_sequence == 2


async def test_an_idle_connection_that_redis_closed_puts_nothing_in_doubt(
    own_bridge: RunningBridge, own_redis: RedisProcess
) -> None:
    await produce(own_bridge.bridge, STREAM, "a", first=0)
    lane: Any = own_bridge.core._append_log._lanes._only
    link = lane.wire.exchange._link
    assert kill_connections(own_redis, "append") == 1
    async with asyncio.timeout(PATIENCE_SECONDS):
        await link.closed
    assert (await produce(own_bridge.bridge, STREAM, "b", first=0)).last_sequence == 2


@pytest.mark.parametrize("purpose", CONNECTIONS)
async def test_each_connection_cut_while_tokens_flow(
    own_bridge: RunningBridge, own_redis: RedisProcess, purpose: str
) -> None:
    calls = [await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM)) for _ in range(3)]
    readings = [asyncio.create_task(Received().read(call)) for call in calls]
    killed = 0

    def kill() -> None:
        nonlocal killed
        killed += kill_connections(own_redis, purpose)

    last = 0
    async with over_and_over(kill, 0.03):
        while killed < 8:
            last += 1
            await produce_surely(own_bridge, f"{last} ", last)
            # Commands are rare otherwise: the readers that come read the log.
            again = own_bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM))
            with suppress(grpc.aio.AioRpcError):
                await again.read()
            again.cancel()
    await produce_surely(own_bridge, "end", last + 1)
    await produce(own_bridge.bridge, STREAM, first=last + 2, completion=STOP)
    for reading in readings:
        assert (await reading).text == "".join(f"{i} " for i in range(1, last + 1)) + "end"


async def test_a_listing_that_is_cut_fails_as_a_whole(own_bridge: RunningBridge, own_redis: RedisProcess) -> None:
    for i in range(40):
        await produce(own_bridge.bridge, ref(f"{i}"), "a", first=1)
    outcomes: set[str] = set()
    async with over_and_over(lambda: kill_connections(own_redis, "commands"), 0.001):
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            for attempt in itertools.count():
                if outcomes and attempt >= 100:
                    break
                try:
                    await own_bridge.admin.ListStreams(ListStreamsRequest(session_id="s"))
                except grpc.aio.AioRpcError as error:
                    failed = failure_of(error)
                    assert failed.code is UNAVAILABLE, failed
                    outcomes.add(failed.reason)


async def test_the_safety_poll_delivers_when_every_wake_up_is_lost(
    bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    waiting = await attached(bridge.bridge, SubscribeRequest(stream=ref("not there yet")))
    wake_ups: Any = bridge.core._wake_ups
    monkeypatch.setattr(wake_ups._link, "_hear", lambda reply: None)
    received = Received()
    for i in range(1, 6):
        await produce(bridge.bridge, STREAM, f"{i} ", first=i)
        # Soon after a token the next poll is due: see REDIS_POLL_DELAY.
        await received.read(call, through=i)
    await produce(bridge.bridge, ref("not there yet"), "there", first=1, completion=STOP)
    assert (await Received().read(waiting)).text == "there"
    await produce(bridge.bridge, STREAM, first=6, completion=STOP)
    assert (await received.read(call)).text == "1 2 3 4 5 "


async def test_pub_sub_that_never_lasts(own_bridge: RunningBridge, own_redis: RedisProcess) -> None:
    call = await attached(own_bridge.bridge, SubscribeRequest(stream=STREAM))
    reading = asyncio.create_task(Received().read(call))
    with own_redis.client() as client:
        async with over_and_over(lambda: client.client_kill_filter(_type="pubsub", skipme=True), 0.005):
            for i in range(1, 101):
                await produce(own_bridge.bridge, STREAM, f"{i} ", first=i)
                await asyncio.sleep(0.005)
            await produce(own_bridge.bridge, STREAM, first=101, completion=STOP)
            assert (await reading).text == "".join(f"{i} " for i in range(1, 101))


@pytest.mark.parametrize("message", [b"", b"hello", b"hello\nworld", b"1 2 3 4 5 6 7\n", b"\xff" * 9 + b"\n\n"])
async def test_wake_ups_that_make_no_sense_change_nothing(
    bridge: RunningBridge, shared_redis: RedisProcess, key_prefix: str, message: bytes
) -> None:
    call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
    with shared_redis.client() as client:
        log = LogSurgery(client, key_prefix, STREAM)
        client.publish(log.key, message)
        await produce(bridge.bridge, STREAM, "a", first=1)
        received = await Received().read(call, through=1)
        client.publish(log.key, message)
    await produce(bridge.bridge, STREAM, "b", first=2, completion=STOP)
    assert (await received.read(call)).text == "ab"


async def test_a_redis_user_that_may_not_publish(own_redis: RedisProcess, key_prefix: str) -> None:
    """Redis 7 gives new users no channels. What is stored must not be reported as failed."""
    with own_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "bridge", "on", ">secret", "~*", "+@all", "resetchannels")
    url = f"unix://bridge:secret@{own_redis.socket}"
    async with running_bridge(url, key_prefix=key_prefix) as bridge:
        answer = await produce(bridge.bridge, STREAM, "a", completion=STOP)
        assert (answer.last_sequence, answer.duplicate) == (2, False)
        # Readers can't be woken: that is told, not hidden.
        failed = await failure(Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=STREAM))))
        assert failed.code is UNAVAILABLE


async def test_connections_are_few_and_end_with_the_bridge(own_redis: RedisProcess, key_prefix: str) -> None:
    with own_redis.client() as client:

        def names() -> list[str]:
            return sorted(entry["name"] for entry in client.client_list() if entry["name"].startswith("llmbridge-"))

        async with running_bridge(own_redis.url, key_prefix=key_prefix) as running:
            calls = [await attached(running.bridge, SubscribeRequest(stream=ref(str(i)))) for i in range(50)]
            await asyncio.gather(*(produce(running.bridge, ref(str(i)), "a", first=1) for i in range(50)))
            assert names() == [f"llmbridge-{purpose}" for purpose in CONNECTIONS]
            for call in calls:
                call.cancel()
        # Redis finds out by itself that they were closed.
        await until(lambda: not names())
