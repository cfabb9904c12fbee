"""How workers and their supervisor start, die, come back and end, as real processes."""

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from llmbridge.client import Client, RetryPolicy
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.connection_service_pb2 import Connection, DisconnectConnectionRequest, ListConnectionsRequest
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, STOP, Received, attached, failure, produce, ref, stub
from tests.support.processes import ended
from tests.support.redis_process import RedisProcess, free_port
from tests.support.workers import channel_to_each, fresh_channel, replaced, serve_with, worker_pids

# Each of several processes takes a second to start, and some more on a busy machine.
pytestmark = pytest.mark.timeout(150)

STREAM = ref("r")
QUICK = RetryPolicy(first_delay=0.001, longest_delay=0.05, attempt_timeout=5.0, give_up_after=30.0)

Start = Callable[..., BridgeProcess]


@pytest.fixture
def start(key_prefix: str) -> Iterator[Start]:
    """Starts two workers and their supervisor, and sees that none is left. With no Redis given, on an embedded one."""
    started: list[BridgeProcess] = []

    def start(redis: RedisProcess | None = None, *, http: bool = False, **environment: str) -> BridgeProcess:
        url = {} if redis is None else {"REDIS_URL": redis.url}
        process = serve_with(2, http=http, LLMBRIDGE_KEY_PREFIX=key_prefix, **url, **environment)
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.close()


async def until_both_serve(process: BridgeProcess) -> None:
    """Wait until each of two workers is found at the port; one that has failed before is not started anew at once."""
    async with asyncio.timeout(3 * PATIENCE_SECONDS):
        while True:
            try:
                async with channel_to_each(process.address, 2):
                    return
            except (AssertionError, grpc.aio.AioRpcError):
                await asyncio.sleep(0.05)


async def told_of_workers(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/streams/health")).json()["checks"]["workers"]["details"]["each"]
    return found


async def listed(channel: grpc.aio.Channel) -> list[Connection]:
    """Ask for the connections of the tests' session."""
    service: Any = ConnectionServiceStub(channel)
    answer = await service.ListConnections(ListConnectionsRequest(session_id="s"), timeout=PATIENCE_SECONDS)
    return list(answer.connections)


def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run `llmbridge serve`, which must not start; returns exit code and what it said."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("REDIS_", "LLMBRIDGE_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "llmbridge.cli.app", "serve", *arguments],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.returncode, done.stderr


async def test_a_killed_worker_is_replaced_and_its_clients_lose_nothing(
    start: Start, shared_redis: RedisProcess
) -> None:
    process = await asyncio.to_thread(start, shared_redis)
    texts = [f"{i} " for i in range(1, 301)]
    seen: set[int] = set()

    async def read(client: Client) -> list[str]:
        found: list[str] = []
        async for message in client.subscribe("s", "m", "r"):
            found += [token.text for token in message.tokens]
        return found

    async with Client(process.address, retry=QUICK) as writing, Client(process.address, retry=QUICK) as reading:
        readers = [asyncio.create_task(read(reading)) for _ in range(3)]
        async with asyncio.timeout(100):
            async with writing.write("s", "m", "r") as writer:
                for i, text in enumerate(texts):
                    await writer.write(text)
                    if i % 100 == 50:
                        # All workers: whichever these clients are at, it dies.
                        pids = worker_pids(process)
                        assert len(pids) == 2
                        seen |= pids
                        for pid in pids:
                            os.kill(pid, signal.SIGKILL)
                        await replaced(process, 2, seen)
            assert await asyncio.gather(*readers) == [texts] * 3
    assert len(seen) == 6
    assert process.process.poll() is None


async def test_one_worker_that_dies_takes_no_other_along(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis, http=True)
    pids = worker_pids(process)
    async with channel_to_each(process.address, 2) as channels:
        calls = {
            number: await attached(stub(channel), SubscribeRequest(stream=STREAM))
            for number, channel in channels.items()
        }
        async with (
            httpx.AsyncClient(base_url=process.http_url, timeout=20, trust_env=False) as http,
            asyncio.timeout(PATIENCE_SECONDS),
        ):
            # Those that the channels were told apart by may not have gone yet.
            while [one["connections"] for one in await told_of_workers(http)] != [1, 1]:
                await asyncio.sleep(0.02)
        # In the order in which they were started, which is that of their pids unless these have wrapped around.
        victim = min(pids, key=lambda pid: psutil.Process(pid).create_time())
        os.kill(victim, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not any(call.done() for call in calls.values()):
                await asyncio.sleep(0.01)
        # The one that is left says so, and goes on.
        [alive] = [number for number, call in calls.items() if not call.done()]
        service: Any = ConnectionServiceStub(channels[alive])
        left = (await service.ListConnections(ListConnectionsRequest(session_id="s"))).connections
        assert [int(one.id[-2:], 16) for one in left] == [alive]
        assert (await produce(stub(channels[alive]), STREAM, "a", first=1)).last_sequence == 1
    assert (pids - {victim}) < await replaced(process, 2, {victim})
    await until_both_serve(process)


async def test_one_worker_that_is_told_to_end_drains_and_comes_back(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis)
    pids = worker_pids(process)
    told = min(pids)
    async with channel_to_each(process.address, 2) as channels:
        calls = [await attached(stub(channel), SubscribeRequest(stream=STREAM)) for channel in channels.values()]
        os.kill(told, signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not any(call.done() for call in calls):
                await asyncio.sleep(0.01)
        [drained] = [call for call in calls if call.done()]
        failed = await failure(Received().read(drained))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert (pids - {told}) < await replaced(process, 2, {told})
    await until_both_serve(process)


async def test_a_worker_that_hangs_is_left_out(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis)
    async with channel_to_each(process.address, 2) as channels:
        for channel in channels.values():
            await attached(stub(channel), SubscribeRequest(stream=STREAM))
        # Which of the two it is can't be told from outside: ask who answers.
        frozen = psutil.Process(min(worker_pids(process)))
        frozen.suspend()
        try:
            asking = [asyncio.create_task(listed(channel)) for channel in channels.values()]
            done, hanging = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            for one in hanging:
                one.cancel()
            await asyncio.wait(asking)
            [answer] = done
            [own] = answer.result()
            alive = int(own.id[-2:], 16)
            # Of the other worker's connections nobody can say that they have ended.
            service: Any = ConnectionServiceStub(channels[alive])
            other = f"{own.id[:-2]}{3 - alive:02x}"
            failed = await failure(service.DisconnectConnection(DisconnectConnectionRequest(connection_id=other)))
            assert failed.short == (grpc.StatusCode.UNAVAILABLE, "WORKER_UNAVAILABLE", {"worker": str(3 - alive)})
        finally:
            frozen.resume()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len((await service.ListConnections(ListConnectionsRequest(session_id="s"))).connections) != 2:
                await asyncio.sleep(0.05)


def _family(process: BridgeProcess) -> list[psutil.Process]:
    return psutil.Process(process.process.pid).children(recursive=True)


async def test_all_die_with_a_killed_supervisor(start: Start, short_path: Path) -> None:
    process = await asyncio.to_thread(start, http=True, TMPDIR=str(short_path))
    family = _family(process)
    commands = [" ".join(one.cmdline()) for one in family]
    assert sum("llmbridge.cli.worker" in command for command in commands) == 2
    assert sum("redis-server" in command and "redis_guard" not in command for command in commands) == 1
    assert sum("redis_guard" in command for command in commands) == 1
    assert list(short_path.glob("llmbridge-*"))
    process.kill()
    assert await ended([one.pid for one in family])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while list(short_path.glob("llmbridge-*")):
            await asyncio.sleep(0.02)


async def test_all_end_with_the_embedded_redis(start: Start, short_path: Path) -> None:
    process = await asyncio.to_thread(start, TMPDIR=str(short_path))
    family = _family(process)
    [redis] = [one for one in family if one.name() == "redis-server"]
    redis.kill()
    assert await asyncio.to_thread(process.process.wait, PATIENCE_SECONDS) == 3
    assert await ended([one.pid for one in family])
    assert not list(short_path.iterdir())


async def test_a_long_temporary_directory_does_not_keep_sockets_from_being_made(start: Start, short_path: Path) -> None:
    long = short_path / ("x" * 100)
    long.mkdir()
    process = await asyncio.to_thread(start, http=True, TMPDIR=str(long))
    await until_both_serve(process)
    assert await asyncio.to_thread(process.terminate) == 0


@asynccontextmanager
async def starting() -> AsyncIterator[BridgeProcess]:
    """Two workers that wait for their Redis, which is not there; the block ends them all."""
    process = serve_with(2, REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    start = asyncio.create_task(asyncio.to_thread(process.start))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not hasattr(process, "process"):
            await asyncio.sleep(0.005)
    pids = await replaced(process, 2, set())
    yield process
    assert await ended(pids)
    with pytest.raises(AssertionError, match="did not start"):
        await start
    process.close()


async def test_all_die_with_a_supervisor_that_is_killed_at_their_start() -> None:
    async with starting() as process:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all(start: Start, number: signal.Signals, short_path: Path) -> None:
    process = await asyncio.to_thread(start, http=True, TMPDIR=str(short_path))
    family = _family(process)
    async with channel_to_each(process.address, 2) as channels:
        cursor = (await produce(stub(channels[1]), STREAM, "a", first=1)).cursor
        calls = [await attached(stub(channel), SubscribeRequest(stream=STREAM)) for channel in channels.values()]
        received = [await Received().read(call, through=1) for call in calls]
        process.process.send_signal(number)
        for call, reader in zip(calls, received, strict=True):
            failed = await failure(reader.read(call))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            assert failed.metadata == {"cursor": cursor}
        assert await asyncio.to_thread(process.process.wait, PATIENCE_SECONDS) == 0
    assert await ended([one.pid for one in family])
    assert not list(short_path.iterdir())


async def test_a_signal_ends_them_also_while_they_start() -> None:
    async with starting() as process:
        process.process.send_signal(signal.SIGTERM)
        # They would wait 30 s for their Redis.
        assert await asyncio.to_thread(process.process.wait, PATIENCE_SECONDS) == 0


async def test_a_worker_that_does_not_drain_in_time_is_killed(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis, LLMBRIDGE_DRAIN_TIMEOUT_MS="0")
    frozen = psutil.Process(min(worker_pids(process)))
    frozen.suspend()
    assert await asyncio.to_thread(process.terminate) == 0
    assert await ended([frozen.pid])


async def test_hang_up_starts_one_after_the_other_anew(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis)
    before = worker_pids(process)
    process.process.send_signal(signal.SIGHUP)
    renewed, fewest, sent = False, 2, 0
    async with Client(process.address, retry=QUICK) as client, asyncio.timeout(100), client.write("s", "m", "r") as it:
        while not renewed:
            await it.write(f"{sent}")
            await it.flush()
            sent += 1
            now = worker_pids(process)
            fewest = min(fewest, len(now))
            renewed = len(now) == 2 and not now & before
            await asyncio.sleep(0.01)
    # One is always there.
    assert fewest >= 1
    await until_both_serve(process)
    async with Client(process.address, retry=QUICK) as client:
        assert [token.text async for message in client.subscribe("s", "m", "r") for token in message.tokens] == [
            f"{i}" for i in range(sent)
        ]


async def test_what_keeps_a_worker_from_coming_back_leaves_the_others_be(
    start: Start, shared_redis: RedisProcess, key_prefix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    process = await asyncio.to_thread(start, shared_redis)
    record = f"{key_prefix}:partitions"
    [victim, other] = worker_pids(process)
    with shared_redis.client() as redis:
        right = redis.get(record)
        redis.set(record, "7", keepttl=True)
        os.kill(victim, signal.SIGKILL)
        said = ""
        async with asyncio.timeout(3 * PATIENCE_SECONDS):
            while said.count("ended with exit code 3") < 2:
                await asyncio.sleep(0.05)
                said += capfd.readouterr().err
        assert "was ended by SIGKILL: starting it anew in 0." in said
        assert re.search(r"worker \d ended with exit code 3 \(.*PARTITIONS.*\): starting it anew in", said)
        assert "1 of 2 workers serve" in said
        assert other in worker_pids(process)
        async with fresh_channel(process.address) as channel:
            await produce(stub(channel), STREAM, "a", first=1)
        redis.set(record, right, keepttl=True)
    await until_both_serve(process)
    assert other in worker_pids(process)


async def test_workers_that_cannot_start_end_all(start: Start, shared_redis: RedisProcess, key_prefix: str) -> None:
    await asyncio.to_thread(start, shared_redis)
    code, said = await asyncio.to_thread(
        refused,
        "--port",
        "0",
        "--workers",
        "2",
        REDIS_URL=shared_redis.url,
        LLMBRIDGE_KEY_PREFIX=key_prefix,
        LLMBRIDGE_PARTITIONS="7",
    )
    assert code == 3
    assert re.search(r"^llmbridge: .*LLMBRIDGE_PARTITIONS", said, re.MULTILINE)


async def test_nobody_joins_by_accident(start: Start, shared_redis: RedisProcess) -> None:
    process = await asyncio.to_thread(start, shared_redis, http=True)
    port, http_port = process.address.rsplit(":", 1)[1], process.http_url.rsplit(":", 1)[1]
    for arguments, named, taken in (
        (("--port", port), "LLMBRIDGE_PORT", port),
        (("--port", port, "--workers", "2"), "LLMBRIDGE_PORT", port),
        (("--port", "0", "--http-port", http_port), "LLMBRIDGE_HTTP_PORT", http_port),
        (("--port", "0", "--http-port", http_port, "--workers", "2"), "LLMBRIDGE_HTTP_PORT", http_port),
    ):
        code, said = await asyncio.to_thread(refused, *arguments, REDIS_URL=shared_redis.url)
        assert (code, named in said, taken in said, "is it taken?" in said) == (3, True, True, True), said
    # And nobody was hurt.
    await until_both_serve(process)
    # Who asks after they have gone gets it at once.
    async with fresh_channel(process.address) as channel:
        await produce(stub(channel), STREAM, "a", first=1, completion=STOP)
        assert await asyncio.to_thread(process.terminate) == 0
    again = BridgeProcess(
        {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": secrets.token_hex(4)},
        (sys.executable, "-m", "llmbridge.cli.app", "serve", "--port", port, "--workers", "2"),
    )
    try:
        await asyncio.to_thread(again.start)
        assert again.address == process.address
    finally:
        again.close()


@pytest.mark.parametrize("count", ["0", "-1", "65", "two"])
async def test_a_bad_number_of_workers(count: str) -> None:
    code, said = await asyncio.to_thread(refused, "--workers", count)
    assert code == 2
    assert "workers" in said.lower()
    code, said = await asyncio.to_thread(refused, LLMBRIDGE_WORKERS=count)
    assert code == 2
    assert "LLMBRIDGE_WORKERS" in said


async def test_a_socket_in_the_file_system_is_not_shared() -> None:
    code, said = await asyncio.to_thread(refused, "--workers", "2", "--host", "unix:/tmp/socket")
    assert (code, "LLMBRIDGE_WORKERS" in said) == (2, True)
