"""A whole bridge inside the test's event loop, serving real gRPC on loopback; and what it may not leave behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import redis.asyncio

from llmbridge.server.bridge import Bridge
from llmbridge.settings import Settings
from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceStub
from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceStub
from llmbridge.v1.group_service_pb2_grpc import GroupServiceStub
from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceStub
from tests.support.tasks import no_tasks_left


@dataclass
class RunningBridge:
    """A bridge that serves, with a channel to it."""

    address: str
    settings: Settings
    core: Bridge
    channel: grpc.aio.Channel
    stop: asyncio.Event
    ended: "asyncio.Task[None]"

    def __post_init__(self) -> None:
        self.bridge: Any = BridgeServiceStub(self.channel)
        self.admin: Any = StreamAdminServiceStub(self.channel)
        self.groups: Any = GroupServiceStub(self.channel)
        self.connections: Any = ConnectionServiceStub(self.channel)


REDIS_TIMEOUT_MS = 10_000
"""Longer than the default: on a busy machine a Redis that is well may be silent for some seconds."""


@asynccontextmanager
async def running_bridge(redis_url: str, *, beside: bool = False, **settings: Any) -> AsyncIterator[RunningBridge]:
    """Start a bridge; at the end drain it and check that it left no task and no Redis connection.

    `beside`: other bridges run in the same test, whose tasks come and go, so tasks are checked when the last one ends.
    """
    before = asyncio.all_tasks()
    settings = {"redis_timeout_ms": REDIS_TIMEOUT_MS, **settings}
    loaded = Settings.load(host="127.0.0.1", port=0, redis_url=redis_url, **settings)
    core = Bridge(loaded, redis_url)
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    ended = asyncio.create_task(core.run(stop, port.set_result))
    await asyncio.wait((ended, port), return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        await ended
    address = f"127.0.0.1:{port.result()}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield RunningBridge(address, loaded, core, channel, stop, ended)
    finally:
        stop.set()
        async with asyncio.timeout(30):
            await ended
    assert core.idle, "readers or followed streams were left"
    this = asyncio.current_task()
    if not beside:
        await no_tasks_left(before | ({this} if this else set()))


async def keys_without_expiry(redis_url: str, prefix: str) -> list[bytes]:
    """Every key that the bridge writes must have an expiry."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        return [key async for key in client.scan_iter(f"{prefix}:*") if await client.ttl(key) < 0]
