"""`llmbridge serve --workers`: its processes, and channels to a worker of one's choice."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import psutil

from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.connection_service_pb2 import ListConnectionsRequest
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from tests.support.bridge_process import BridgeProcess
from tests.support.calls import PATIENCE_SECONDS, attached, ref, stub

MOST_CHANNELS = 64
"""With two workers, one of 2^63 runs finds only one of them by so many connections."""


def serve_with(workers: int, *arguments: str, http: bool = False, **environment: str) -> BridgeProcess:
    """A supervisor with so many workers, to be started; its first line names the port of all of them."""
    command = (sys.executable, "-m", "llmbridge.cli.app", "serve", "--port", "0", "--workers", str(workers), *arguments)
    if http:
        command += ("--http-port", "0")
    return BridgeProcess(environment, command, http=http)


def worker_pids(supervisor: BridgeProcess) -> set[int]:
    """The workers that run."""
    found = set()
    for child in psutil.Process(supervisor.process.pid).children():
        try:
            if "llmbridge.cli.worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


async def replaced(supervisor: BridgeProcess, workers: int, gone: set[int]) -> set[int]:
    """Wait until so many workers run that are none of those; returns them. They may not serve yet."""
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        while len(now := worker_pids(supervisor) - gone) < workers:
            await asyncio.sleep(0.02)
    return now


def fresh_channel(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, which comes to any of the workers."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


async def worker_at(channel: grpc.aio.Channel) -> int:
    """Tell which worker a channel has come to, by the id of a connection there."""
    call = await attached(stub(channel), SubscribeRequest(stream=ref("who", session=f"at {id(channel)}")))
    try:
        asked = ListConnectionsRequest(session_id=f"at {id(channel)}")
        listed = await ConnectionServiceStub(channel).ListConnections(asked, timeout=PATIENCE_SECONDS)
        [connection] = listed.connections
    finally:
        call.cancel()
    return int(connection.id[-2:], 16)


@asynccontextmanager
async def channel_to_each(address: str, workers: int) -> AsyncIterator[dict[int, grpc.aio.Channel]]:
    """A channel to each of the workers, by number."""
    async with AsyncExitStack() as opened:
        found: dict[int, grpc.aio.Channel] = {}
        for _ in range(MOST_CHANNELS):
            channel = await opened.enter_async_context(fresh_channel(address))
            found.setdefault(await worker_at(channel), channel)
            if len(found) == workers:
                break
        assert sorted(found) == list(range(1, workers + 1))
        yield found
