"""The gateway's connection to the bridge: one channel, all stubs, who reads, and the moment when readers must leave.

Knows nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Self

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub

from llmbridge.client import RetryPolicy, Writer
from llmbridge.client.connection import Connection
from llmbridge.client.errors import Unavailable
from llmbridge.client.reading import Reading
from llmbridge.client.values import name_of
from llmbridge.v1.bridge_service_pb2 import SubscribeRequest
from llmbridge.v1.stream_pb2 import StreamRef

if TYPE_CHECKING:
    # These exist for type checkers only.
    from llmbridge.v1.bridge_service_pb2_grpc import BridgeServiceAsyncStub
    from llmbridge.v1.connection_service_pb2_grpc import ConnectionServiceAsyncStub
    from llmbridge.v1.group_service_pb2_grpc import GroupServiceAsyncStub
    from llmbridge.v1.lifecycle_service_pb2_grpc import LifecycleServiceAsyncStub
    from llmbridge.v1.stream_admin_service_pb2_grpc import StreamAdminServiceAsyncStub


class Link:
    """The stubs of the bridge's services, readers and writers. Made by `open`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.bridge: BridgeServiceAsyncStub = connection.bridge
        self.admin: StreamAdminServiceAsyncStub = connection.admin
        self.groups: GroupServiceAsyncStub = connection.groups
        self.lifecycle: LifecycleServiceAsyncStub = connection.lifecycle
        self.connections: ConnectionServiceAsyncStub = connection.connections
        self.health: HealthStub = connection.health
        self._reads: set[Reading] = set()
        self._draining_since: float | None = None

    @property
    def draining(self) -> bool:
        """Whether the gateway stops."""
        return self._draining_since is not None

    @property
    def reads(self) -> int:
        """How many readers there are."""
        return len(self._reads)

    def drain(self) -> None:
        """End every read, also those to come, with Unavailable, reason DRAINING (see `reading`)."""
        if self._draining_since is None:
            self._draining_since = asyncio.get_running_loop().time()
        for read in self._reads:
            read.end(_draining)

    def seconds_left(self, of_seconds: float) -> float:
        """How much of so many seconds is left, counted from the drain; all of them before it."""
        if self._draining_since is None:
            return of_seconds
        return max(0.0, self._draining_since + of_seconds - asyncio.get_running_loop().time())

    @contextmanager
    def reading(self, request: SubscribeRequest, transport: str) -> Iterator[Reading]:
        """Read a stream while the block lasts; `transport` tells the bridge how the reader came here."""
        read = self.connection.subscribe(request, transport)
        self._reads.add(read)
        if self.draining:
            read.end(_draining)
        try:
            yield read
        finally:
            self._reads.discard(read)
            read.close()

    def write(self, stream: StreamRef, *, close_timeout: float) -> Writer:
        """Make a writer for a whole response, with retries; see Writer."""
        return Writer(self.connection, name_of(stream), close_timeout=close_timeout)

    @classmethod
    @asynccontextmanager
    async def open(cls, target: str) -> AsyncIterator[Self]:
        """Connect to a bridge at `host:port` or a target in grpc's syntax; nothing is sent before the first call.

        Raises ValueError for a target that is none.
        """
        connection = Connection(target, RetryPolicy())
        try:
            yield cls(connection)
        finally:
            await connection.close()


def _draining() -> Unavailable:
    return Unavailable("the gateway is shutting down", code=grpc.StatusCode.UNAVAILABLE, reason="DRAINING")
