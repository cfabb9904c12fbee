"""Redis with Sentinel: the primary dies under load; readers stay, producers retry, and what was lost is told."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest

from llmbridge.errors import AppendOutcomeUnknown, RedisUnavailable
from llmbridge.log import exchange
from llmbridge.log.commands import Commands
from llmbridge.log.servers import ReplicaAcks, Servers
from llmbridge.model.names import StreamName
from llmbridge.model.records import Append, Producer
from llmbridge.v1.bridge_service_pb2 import CancelRequest, ProduceResponse, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, DeleteStreamRequest
from llmbridge.v1.stream_pb2 import StreamRef
from llmbridge.v1.token_pb2 import Completion
from tests.support.calls import (
    PATIENCE_SECONDS,
    STOP,
    Received,
    attached,
    failure,
    failure_of,
    produce,
    read_all,
    ref,
    until,
)
from tests.support.log_parts import log_parts
from tests.support.redis_process import RedisProcess, usable_binary
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.sentinels import SERVICE, Watched, watched

STREAM = ref("r")
TOKENS = 120


@pytest.fixture
def servers() -> Iterator[Watched]:
    """Servers that the test may hurt."""
    with watched_servers() as running:
        yield running


@pytest.fixture(scope="module")
def shared_servers() -> Iterator[Watched]:
    """Servers for tests that leave them as they were."""
    with watched_servers() as running:
        yield running


@contextmanager
def watched_servers(replicas: int = 2) -> Iterator[Watched]:
    with watched(usable_binary(), replicas) as running:
        yield running


@asynccontextmanager
async def serving(servers: Watched, prefix: str, **settings: Any) -> AsyncIterator[RunningBridge]:
    async with running_bridge(
        servers.url, key_prefix=prefix, redis_timeout_ms=5_000, heartbeat_ms=500, **settings
    ) as running:
        yield running


async def produce_all(bridge: RunningBridge, stream: StreamRef, tokens: int, refused: Counter[str]) -> None:
    """Produce as a client does that retries what is UNAVAILABLE; counts why it had to."""
    for number in range(1, tokens + 2):
        while True:
            try:
                await produce_one(bridge, stream, number, tokens)
            except grpc.aio.AioRpcError as error:
                failed = failure_of(error)
                assert failed.code is grpc.StatusCode.UNAVAILABLE, failed
                assert failed.retry_ms
                refused[failed.reason] += 1
                await asyncio.sleep(failed.retry_ms / 1000)
            else:
                break
        await asyncio.sleep(0.01)


async def produce_one(bridge: RunningBridge, stream: StreamRef, number: int, tokens: int) -> None:
    end = number > tokens
    await produce(
        bridge.bridge, stream, *(() if end else (f"{number} ",)), first=number, completion=STOP if end else None
    )


async def test_a_failover_under_load_loses_nothing_that_the_replica_acknowledged(key_prefix: str) -> None:
    """The same calls go on through it: nobody sees anything but UNAVAILABLE with the advice to retry."""
    with watched_servers(replicas=1) as servers:
        async with serving(servers, key_prefix, replica_acks=1, replica_ack_timeout_ms=300) as bridge:
            streams = [ref(f"{i}") for i in range(8)]
            calls = [await attached(bridge.bridge, SubscribeRequest(stream=stream)) for stream in streams]
            refused: Counter[str] = Counter()
            async with asyncio.TaskGroup() as tasks, asyncio.timeout(3 * PATIENCE_SECONDS):
                reading = [tasks.create_task(Received().read(call)) for call in calls]
                for stream in streams:
                    tasks.create_task(produce_all(bridge, stream, TOKENS, refused))
                await asyncio.sleep(0.3)
                killed = servers.kill_primary()
                await asyncio.to_thread(servers.wait_for_failover, killed)
                await until(lambda: refused["REDIS_UNAVAILABLE"])
                # Until it is back, as a replica, nothing can be stored that would outlive the new primary.
                await until(lambda: refused["APPEND_OUTCOME_UNKNOWN"])
                killed.config["replicaof"] = f"127.0.0.1 {servers.primary.port}"
                await asyncio.to_thread(killed.start)
            assert [task.result().text for task in reading] == ["".join(f"{i} " for i in range(1, TOKENS + 1))] * 8


async def test_without_replica_acks_a_lost_tail_is_told(servers: Watched, key_prefix: str) -> None:
    async with serving(servers, key_prefix) as bridge:
        lost, rewritten, begun_anew, untouched = (ref(name) for name in ("lost", "rewritten", "anew", "untouched"))
        for stream in (lost, rewritten, untouched):
            await produce(bridge.bridge, stream, "a", first=1)
        await asyncio.to_thread(servers.wait_until_in_step)
        readers: dict[str, tuple[Any, Received]] = {}
        servers.lock_replicas_out()
        for stream in (lost, rewritten):
            await produce(bridge.bridge, stream, "b", first=2)
        await produce(bridge.bridge, begun_anew, "b", first=1)
        for stream in (lost, rewritten, begun_anew, untouched):
            call = await attached(bridge.bridge, SubscribeRequest(stream=stream))
            through = 1 if stream in (begun_anew, untouched) else 2
            readers[stream.response_id] = call, await Received().read(call, through=through)
        killed = servers.kill_primary()
        await asyncio.to_thread(servers.wait_for_failover, killed)
        # The readers' calls fail as soon as the bridge looks; a cursor tells the same later, and elsewhere.
        failed = await failure(readers["lost"][1].read(readers["lost"][0]))
        assert (failed.code, failed.reason) == (grpc.StatusCode.OUT_OF_RANGE, "LOST")
        failed = await failure(readers["anew"][1].read(readers["anew"][0]))
        assert (failed.code, failed.reason) == (grpc.StatusCode.OUT_OF_RANGE, "EXPIRED")
        gap = await failure(produce_until_served(bridge, lost, "c", 3))
        assert (gap.reason, gap.metadata["expected"]) == ("SEQUENCE_GAP", "2")
        await produce_until_served(bridge, rewritten, "other", 2)
        await produce_until_served(bridge, begun_anew, "other", 1)
        for name, reason in (("lost", "LOST"), ("rewritten", "REWRITTEN"), ("anew", "RESTARTED")):
            again = bridge.bridge.Subscribe(SubscribeRequest(stream=ref(name), after_cursor=readers[name][1].cursor))
            assert (await failure(again.read())).reason == reason
        await produce(bridge.bridge, untouched, "b", first=2, completion=STOP)
        assert (await readers["untouched"][1].read(readers["untouched"][0])).text == "ab"


async def produce_until_served(
    bridge: RunningBridge, stream: StreamRef, text: str, first: int, completion: Completion | None = None
) -> ProduceResponse:
    """Produce a text, or a completion, until it is taken: also replicas that are well may take their time."""
    texts = () if completion else (text,)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await produce(bridge.bridge, stream, *texts, first=first, completion=completion)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def test_too_few_replicas(shared_servers: Watched, key_prefix: str) -> None:
    """Nothing counts as stored before the replicas have it: neither a write nor the retry that finds it there."""
    async with serving(shared_servers, key_prefix, replica_acks=2, replica_ack_timeout_ms=100) as bridge:
        await produce_until_served(bridge, STREAM, "a", 1)
        call = await attached(bridge.bridge, SubscribeRequest(stream=STREAM))
        for replica in shared_servers.replicas:
            replica.freeze()
        try:
            for _ in range(3):
                failed = await failure(produce(bridge.bridge, STREAM, "b", first=2))
                assert failed.short == (grpc.StatusCode.UNAVAILABLE, "APPEND_OUTCOME_UNKNOWN", {})
                assert failed.retry_ms
            for refused in (
                bridge.bridge.Cancel(CancelRequest(stream=ref("cancelled"))),
                bridge.bridge.Cancel(CancelRequest(stream=ref("cancelled"))),
                bridge.admin.CreateStream(CreateStreamRequest(stream=ref("created"))),
                bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("deleted"))),
            ):
                assert (await failure(refused)).reason == "APPEND_OUTCOME_UNKNOWN"
            # A new connection has written nothing itself: it must not take what is there for replicated.
            with shared_servers.primary.client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            assert (await failure(produce(bridge.bridge, STREAM, "b", first=2))).code is grpc.StatusCode.UNAVAILABLE
        finally:
            for replica in shared_servers.replicas:
                replica.thaw()
        await produce_until_served(bridge, STREAM, "b", 2)
        answer = await produce_until_served(bridge, STREAM, "b", 2)
        assert (answer.duplicate, answer.last_sequence) == (True, 2)
        await produce_until_served(bridge, STREAM, "", 3, STOP)
        assert (await Received().read(call)).text == "ab"


async def test_wake_ups_come_after_the_replicas(shared_servers: Watched, key_prefix: str) -> None:
    """What is published is what replicas have. (Who catches up from the log may see more.)"""
    async with serving(shared_servers, key_prefix, replica_acks=2, replica_ack_timeout_ms=400) as bridge:
        await produce_until_served(bridge, STREAM, "a", 1)
        with shared_servers.primary.client() as client, client.pubsub() as listening:
            listening.psubscribe(f"{key_prefix}:stream:*")
            assert listening.get_message(timeout=5)
            for replica in shared_servers.replicas:
                replica.freeze()
            try:
                assert (await failure(produce(bridge.bridge, STREAM, "b", first=2))).retry_ms
                assert listening.get_message(timeout=0.1) is None
            finally:
                for replica in shared_servers.replicas:
                    replica.thaw()
            await produce_until_served(bridge, STREAM, "b", 2)
            assert listening.get_message(timeout=5)
            await produce_until_served(bridge, STREAM, "c", 3)
            assert listening.get_message(timeout=5)["data"].endswith(b"c")


async def test_a_primary_that_was_demoted_is_left(servers: Watched, key_prefix: str) -> None:
    """It answers READONLY: nothing is stored, and the next attempt finds the new one."""
    async with serving(servers, key_prefix) as bridge:
        await produce(bridge.bridge, STREAM, "a", first=1)
        await bridge.bridge.Cancel(CancelRequest(stream=ref("another")))
        old = servers.primary
        await asyncio.to_thread(servers.wait_until_in_step)
        await asyncio.to_thread(servers.ask_for_failover)
        await asyncio.to_thread(servers.wait_for_failover, old)
        # Sentinels do so themselves, some 9 s after a failover that they were asked for.
        with old.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", str(servers.primary.port))
        await produce_until_served(bridge, STREAM, "b", 2)
        await produce(bridge.bridge, STREAM, first=3, completion=STOP)
        assert (await read_all(bridge.bridge, STREAM)).text == "ab"
        with servers.primary.client() as client:
            assert client.role()[0] == b"master"
            (log,) = client.keys(f"{key_prefix}:stream:*:r")
            assert client.xlen(log) == 3


async def test_a_server_that_is_made_a_replica_behind_the_bridge(own_redis: RedisProcess, key_prefix: str) -> None:
    """Without sentinels, too, a connection to what is no primary any more is not kept."""
    async with running_bridge(own_redis.url, key_prefix=key_prefix) as bridge:
        await produce(bridge.bridge, STREAM, "a", first=1)
        with own_redis.client() as client:
            before = client.client_list(_type="normal")
            await asyncio.sleep(1.1)
            client.execute_command("REPLICAOF", "127.0.0.1", "1")
            for call in (
                produce(bridge.bridge, STREAM, "b", first=2),
                bridge.bridge.Cancel(CancelRequest(stream=STREAM)),
            ):
                failed = await failure(call)
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
            client.execute_command("REPLICAOF", "NO", "ONE")
            await produce_until_served(bridge, STREAM, "b", 2)
            after = client.client_list(_type="normal")
        assert {it["id"] for it in before if it["name"] == "llmbridge-append"}.isdisjoint(it["id"] for it in after)


async def test_a_replica_is_left_also_where_replicas_are_waited_for(
    each_redis: RedisProcess, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses WAIT, which hides that it refuses what was to be stored."""
    monkeypatch.setattr(exchange, "LONGEST_PAUSE_SECONDS", -1.0)
    acks = ReplicaAcks(replicas=1, timeout_ms=10)
    async with log_parts(each_redis.url, key_prefix, acks=acks) as parts:

        async def connection() -> int:
            """Who appends; it does so, though no replica gets it."""
            with pytest.raises(AppendOutcomeUnknown):
                await parts.appends.append(StreamName("s", "m"), Append(0, 1, None, Producer(0, "p"), b"x"))
            found: Any = await parts.client.client_list()
            return next(int(it["id"]) for it in found if it["name"] == "llmbridge-append")

        first = await connection()
        assert await connection() == first
        await parts.client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(AppendOutcomeUnknown):
                await parts.appends.append(StreamName("s", "m"), Append(0, 1, None, Producer(0, "p"), b"x"))
        finally:
            await parts.client.replicaof("NO", "ONE")
        assert await connection() != first


async def test_sentinels_that_know_nothing(shared_servers: Watched, key_prefix: str) -> None:
    """One that is gone is passed over; a service that none knows is a clear error, with no password in it."""
    url = shared_servers.url.replace("//", "//127.0.0.1:1,")
    async with running_bridge(url, key_prefix=key_prefix) as bridge:
        await produce(bridge.bridge, STREAM, "a", first=1)
    url = url.replace("//", "//:hidden-secret@").replace(SERVICE, "nothing")
    commands = Commands(Servers(f"{url}?sentinel_password=hidden-secret", 10.0))
    running = asyncio.create_task(commands.run())
    with pytest.raises(RedisUnavailable, match="no sentinel knows a primary of 'nothing'") as refused:
        await commands.read("PING")
    assert "hidden-secret" not in str(refused.value)
    running.cancel()
    await asyncio.wait([running])
