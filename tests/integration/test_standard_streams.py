"""Commands whose standard streams are closed, or whose output nobody reads: shells, init systems and pipes do that."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from llmbridge.client import Client, FinishReason, ResponseFailed, RetryPolicy
from tests.support.command import LLMBRIDGE, Done, clean_environment
from tests.support.redis_process import RedisProcess
from tests.support.running_bridge import RunningBridge

# Servers take some seconds to start, and many on a busy machine.
pytestmark = pytest.mark.timeout(150)

SECONDS = 100.0
PATIENT = RetryPolicy(give_up_after=SECONDS)


@asynccontextmanager
async def redirected(redirection: str, *arguments: str, **environment: str) -> AsyncIterator[Process]:
    """Run a command as a shell does with a redirection."""
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'exec "$@" {redirection}', "sh", *LLMBRIDGE, *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=clean_environment() | environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(redirection: str, *arguments: str, **environment: str) -> Done:
    async with asyncio.timeout(SECONDS), redirected(redirection, *arguments, **environment) as process:
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def run_unread(*arguments: str, **environment: str) -> Done:
    """Run a command whose standard output is a pipe that nobody reads any more."""
    nobody, unread = os.pipe()
    os.close(nobody)
    try:
        process = await asyncio.create_subprocess_exec(
            *LLMBRIDGE, *arguments, stdout=unread, stderr=PIPE, env=clean_environment() | environment
        )
    finally:
        os.close(unread)
    async with asyncio.timeout(SECONDS):
        _, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, "", err.decode())


async def listening(process: Process, count: int) -> Sequence[int]:
    """Wait until a server that can't say so listens on so many ports; returns them."""
    server = psutil.Process(process.pid)
    async with asyncio.timeout(SECONDS):
        while True:
            found = [one.laddr.port for one in server.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
            if len(found) == count:
                return found
            assert process.returncode is None, "it has ended"
            await asyncio.sleep(0.05)


async def test_no_standard_input_is_told(bridge: RunningBridge) -> None:
    done = await run("<&-", "produce", "s", "m", LLMBRIDGE_ADDRESS=bridge.address)
    assert (done.code, done.err) == (3, "llmbridge: can't read standard input: Bad file descriptor\n")
    async with Client(bridge.address) as client:
        with pytest.raises(ResponseFailed):
            [text async for text in client.subscribe("s", "m").texts()]


@pytest.mark.parametrize("command", ["tail s m", "tail s m --json", "streams get s m", "streams list --open"])
async def test_no_standard_output_is_as_if_nobody_wanted_it(bridge: RunningBridge, command: str) -> None:
    async with Client(bridge.address) as client, client.write("s", "m") as writer:
        await writer.text("a")
    done = await run(">&-", *command.split(), LLMBRIDGE_ADDRESS=bridge.address)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["health", "dead-letters redrive 0:1-0"])
async def test_an_answer_that_nobody_reads_is_not_taken_for_another(bridge: RunningBridge, command: str) -> None:
    done = await run_unread(*command.split(), LLMBRIDGE_ADDRESS=bridge.address)
    assert (done.code, done.err) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_server_without_standard_streams_serves(shared_redis: RedisProcess, key_prefix: str) -> None:
    environment = {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix}
    async with redirected("<&- >&- 2>&-", "serve", "--port", "0", **environment) as process:
        [port] = await listening(process, 1)
        # What writes to them, as libraries do to standard error, must not meet a connection.
        assert {Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in range(3)} == {Path(os.devnull)}
        async with Client(f"127.0.0.1:{port}", retry=PATIENT) as client:
            completion = await client.pipe(words(), "s", "m")
            assert FinishReason.of(completion) is FinishReason.STOP
        process.terminate()
        assert await process.wait() == 0


async def words() -> AsyncIterator[str]:
    yield "a"


async def test_a_server_serves_on_when_nobody_reads_where_it_is(shared_redis: RedisProcess, key_prefix: str) -> None:
    for needed in ("httptools", "starlette", "uvicorn", "websockets"):
        pytest.importorskip(needed, reason="the extra 'gateway' is not installed")
    nobody, unread = os.pipe()
    os.close(nobody)
    process = await asyncio.create_subprocess_exec(
        *(*LLMBRIDGE, "serve", "--port", "0", "--http-port", "0"),
        stdout=unread,
        stderr=PIPE,
        env=clean_environment() | {"REDIS_URL": shared_redis.url, "LLMBRIDGE_KEY_PREFIX": key_prefix},
    )
    os.close(unread)
    try:
        served = await asyncio.gather(*(asks_http(port) for port in await listening(process, 2)))
        assert sorted(served) == [False, True]
        process.terminate()
    finally:
        if process.returncode is None and sys.exc_info()[0] is not None:
            process.kill()
        async with asyncio.timeout(SECONDS):
            _, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"Traceback" not in err


async def asks_http(port: int) -> bool:
    """Whether a port is the gateway's, and that serves."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, trust_env=False) as http:
        try:
            return (await http.get("/streams/health")).is_success
        except httpx.HTTPError:
            return False
