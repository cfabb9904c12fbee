"""Redis refuses, stalls or dies: what is answered, what is stored, and that a retry is exact."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
import pytest
import redis

from llmbridge.errors import AppendOutcomeUnknown, RedisUnavailable, Unavailable
from llmbridge.model.names import StreamName
from llmbridge.model.records import FinishReason
from llmbridge.sequencing import Decision
from llmbridge.v1.bridge_service_pb2 import CancelRequest, KeepAliveRequest, ProduceRequest, SubscribeRequest
from llmbridge.v1.stream_admin_service_pb2 import CreateStreamRequest, DeleteStreamRequest, GetStreamRequest
from llmbridge.v1.token_pb2 import Token
from tests.support.append_cases import A, request
from tests.support.calls import PATIENCE_SECONDS, Received, attached, failure, produce, ref
from tests.support.log_parts import DAY_MS, LogParts, log_parts
from tests.support.redis_process import RedisProcess, binaries
from tests.support.running_bridge import keys_without_expiry, running_bridge

NAME = StreamName("s", "m")
STALL = "while true do end"


@pytest.fixture(params=["system", "wheel"])
def own_each_redis(request: pytest.FixtureRequest) -> Iterator[RedisProcess]:
    """A Redis of each kind that the test may hurt."""
    binary = binaries().get(request.param)
    if binary is None:
        pytest.skip(f"there is no redis-server of the kind {request.param}")
    server = RedisProcess(binary).start()
    yield server
    server.close()


@dataclass(frozen=True)
class Trouble:
    """A state in which Redis answers but can't write."""

    begin: tuple[tuple[str, ...], ...]
    end: tuple[tuple[str, ...], ...]
    says: str


TROUBLES = {
    "out of memory": Trouble(
        (("CONFIG", "SET", "maxmemory", "1"),), (("CONFIG", "SET", "maxmemory", "0"),), "OOM command not allowed"
    ),
    "a replica": Trouble((("REPLICAOF", "127.0.0.1", "1"),), (("REPLICAOF", "NO", "ONE"),), "READONLY"),
    "a replica without its master": Trouble(
        (("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")),
        (("REPLICAOF", "NO", "ONE"),),
        "MASTERDOWN",
    ),
    "too few replicas": Trouble(
        (("CONFIG", "SET", "min-replicas-to-write", "1"),),
        (("CONFIG", "SET", "min-replicas-to-write", "0"),),
        "NOREPLICAS",
    ),
}


@asynccontextmanager
async def _in_trouble(parts: LogParts, trouble: Trouble) -> AsyncIterator[None]:
    for command in trouble.begin:
        await parts.client.execute_command(*command)  # type: ignore[no-untyped-call]
    yield
    for command in trouble.end:
        await parts.client.execute_command(*command)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_what_redis_refuses_is_unavailable_with_nothing_stored_and_exact_when_repeated(
    own_each_redis: RedisProcess, trouble: Trouble
) -> None:
    async with log_parts(own_each_redis.url, "p") as parts:
        await parts.store(NAME, request(1, "ab"))
        new = [StreamName("new", "m", str(i)) for i in range(5)]
        asked = [(NAME, request(3, "c")), *((name, request(1, "x")) for name in new)]
        keys = sorted(await parts.client.keys("p:*"))
        async with _in_trouble(parts, trouble):
            for _ in range(2):
                for error in await asyncio.gather(
                    *(parts.append(name, one) for name, one in asked), return_exceptions=True
                ):
                    assert isinstance(error, RedisUnavailable)
                    assert trouble.says in error.message
            with pytest.raises(RedisUnavailable, match=trouble.says):
                await parts.streams.create(StreamName("new", "c"), None, None, DAY_MS)
            with pytest.raises(RedisUnavailable, match=trouble.says):
                await parts.produce.append(NAME, request(3, "c", FinishReason.STOP))
        assert sorted(await parts.client.keys("p:*")) == keys
        assert [entry.last for entry in await parts.entries(NAME)] == [2]
        for decision in (Decision.APPEND, Decision.DUPLICATE):
            outcomes = await asyncio.gather(*(parts.append(name, one) for name, one in asked))
            assert {outcome.decision for outcome in outcomes} == {decision}
        assert [(entry.first, entry.last) for entry in await parts.entries(NAME)] == [(1, 2), (3, 3)]
    assert await keys_without_expiry(own_each_redis.url, "p") == []


@pytest.mark.parametrize("trouble", [TROUBLES["out of memory"], TROUBLES["a replica"]], ids=["OOM", "READONLY"])
async def test_calls_while_redis_can_not_write(own_each_redis: RedisProcess, trouble: Trouble) -> None:
    async with (
        running_bridge(own_each_redis.url, key_prefix="p") as bridge,
        log_parts(own_each_redis.url, "p", partitions=bridge.settings.partitions) as parts,
    ):
        stream = ref("r")
        await produce(bridge.bridge, stream, "a", first=1)
        await bridge.bridge.KeepAlive(KeepAliveRequest(stream=stream))
        reader = await attached(bridge.bridge, SubscribeRequest(stream=stream))
        received = await Received().read(reader, through=1)
        async with _in_trouble(parts, trouble):
            for call in (
                bridge.bridge.Produce(ProduceRequest(stream=stream, tokens=[Token(text="b")], first_sequence=2)),
                bridge.bridge.Cancel(CancelRequest(stream=stream)),
                bridge.bridge.KeepAlive(KeepAliveRequest(stream=stream)),
                bridge.admin.CreateStream(CreateStreamRequest(stream=ref("new"))),
            ):
                failed = await failure(call)
                assert failed.short == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE", {})
                assert failed.retry_ms
                assert "nothing was stored" in failed.message
            # What only reads is served.
            assert (await bridge.admin.GetStream(GetStreamRequest(stream=stream))).info.last_sequence == 1
            late = await attached(bridge.bridge, SubscribeRequest(stream=stream))
            assert (await Received().read(late, through=1)).text == "a"
            late.cancel()
        assert not (await produce(bridge.bridge, stream, "b", first=2)).duplicate
        assert (await received.read(reader, through=2)).text == "ab"
        reader.cancel()


async def test_deleting_works_when_redis_is_out_of_memory(own_each_redis: RedisProcess) -> None:
    async with (
        running_bridge(own_each_redis.url, key_prefix="p") as bridge,
        log_parts(own_each_redis.url, "p") as parts,
    ):
        await produce(bridge.bridge, ref("r"), "a", first=1)
        async with _in_trouble(parts, TROUBLES["out of memory"]):
            await bridge.admin.DeleteStream(DeleteStreamRequest(stream=ref("r")))
            assert (await failure(bridge.admin.GetStream(GetStreamRequest(stream=ref("r"))))).reason == (
                "STREAM_NOT_FOUND"
            )


async def test_somebody_elses_slow_script(own_each_redis: RedisProcess) -> None:
    async with log_parts(own_each_redis.url, "p") as parts:
        await parts.store(NAME, request(1, "a"))
        await parts.client.config_set("lua-time-limit", "20")
        stalling = asyncio.create_task(asyncio.to_thread(_stall, own_each_redis))
        refused = await _until_refused(parts)
        assert "BUSY" in refused.message
        await parts.client.script_kill()
        with pytest.raises(Exception, match="SCRIPT KILL"):
            await stalling
        assert (await parts.append(NAME, request(2, "b"))).decision is Decision.APPEND
        assert [entry.last for entry in await parts.entries(NAME)] == [1, 2]


async def _until_refused(parts: LogParts) -> RedisUnavailable:
    """Repeat what changes nothing until the script is in the way."""
    async with asyncio.timeout(10):
        while True:
            try:
                await parts.append(NAME, request(1, "a"))
            except RedisUnavailable as error:
                return error
            await asyncio.sleep(0.001)


def _stall(server: RedisProcess) -> None:
    """Have Redis carry out a script that ends when it is killed."""
    with redis.Redis(unix_socket_path=str(server.socket), socket_timeout=30) as client:
        client.eval(STALL, 0)


@contextmanager
def _stalled(server: RedisProcess) -> Iterator[None]:
    """Redis takes everything and answers nobody; what it took it carries out afterwards."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def test_a_lost_reply_is_told_as_such_and_a_retry_with_numbers_is_exact(own_each_redis: RedisProcess) -> None:
    async with log_parts(own_each_redis.url, "p", timeout_seconds=0.5) as parts:
        numbered, unnumbered = StreamName("s", "numbered"), StreamName("s", "unnumbered")
        asked = [(numbered, request(1, "abc")), (unnumbered, request(0, "abc"))]
        await _until_answered(parts, StreamName("s", "warm"), request(0, "x"))
        with _stalled(own_each_redis):
            lost = await asyncio.gather(*(parts.append(name, one) for name, one in asked), return_exceptions=True)
            assert [type(error) for error in lost] == [AppendOutcomeUnknown] * 2
        # Redis finds both in the closed connection's buffer and carries them out.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while [len(await parts.entries(name)) for name, _ in asked] != [1, 1]:
                await asyncio.sleep(0.005)
        again = [await _until_answered(parts, name, one) for name, one in asked]
        assert again == [Decision.DUPLICATE, Decision.APPEND], "without numbers there is no such protection"
        assert len(await parts.entries(numbered)) == 1


async def _until_answered(parts: LogParts, name: StreamName, one: object) -> Decision:
    async with asyncio.timeout(10):
        while True:
            try:
                return (await parts.append(name, one)).decision  # type: ignore[arg-type]
            except Unavailable:
                await asyncio.sleep(0.01)


async def test_a_stalled_redis_ends_calls_in_time(own_each_redis: RedisProcess) -> None:
    async with (
        running_bridge(own_each_redis.url, key_prefix="p", redis_timeout_ms=1_000) as bridge,
        log_parts(own_each_redis.url, "p") as parts,
    ):
        await produce(bridge.bridge, ref("r"), "a", first=1)
        asked = ProduceRequest(stream=ref("r"), tokens=[Token(text="b")], first_sequence=2)
        with _stalled(own_each_redis):
            unknown, cancel = await asyncio.gather(
                failure(bridge.bridge.Produce(asked)),
                failure(bridge.bridge.Cancel(CancelRequest(stream=ref("other")))),
            )
        for failed in (unknown, cancel):
            assert failed.short == (grpc.StatusCode.UNAVAILABLE, "APPEND_OUTCOME_UNKNOWN", {})
            assert failed.retry_ms
        assert (await _until_answered(parts, NAME, request(1, "z"))) is Decision.APPEND


async def test_producers_that_repeat_while_redis_is_killed_lose_and_double_nothing(own_redis: RedisProcess) -> None:
    texts = [chr(ord("a") + i % 26) for i in range(120)]
    names = [StreamName("s", "m", str(i)) for i in range(3)]
    async with log_parts(own_redis.url, "p", timeout_seconds=1.0) as parts:
        reached = asyncio.Event()

        async def write(name: StreamName) -> None:
            for i, text in enumerate(texts):
                # A repeat of what was stored is as good as storing it.
                assert await _until_answered(parts, name, request(i + 1, text, by=A)) in (
                    Decision.APPEND,
                    Decision.DUPLICATE,
                )
                if i == len(texts) // 3:
                    reached.set()

        async with asyncio.TaskGroup() as writers:
            for name in names:
                writers.create_task(write(name))
            await reached.wait()
            own_redis.kill()
            await asyncio.to_thread(own_redis.start)
        for name in names:
            assert [entry.fragment for entry in await parts.entries(name)] == [
                request(i + 1, text).fragment for i, text in enumerate(texts)
            ]
