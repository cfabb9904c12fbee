"""The calls attached to this process, of whatever kind: who is here, what each is doing, and ending one from outside.

Admits them within the limits, keeps their heartbeats, sends them off when the process drains, and lets go of those
whose client takes nothing. Knows neither what their messages are nor how these travel.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from llmbridge.errors import ConnectionIdle, ConnectionNotFound, Disconnected, Draining, LimitExceeded
from llmbridge.hub.attached import Attached, Attendee, Ending, State
from llmbridge.hub.serials import ID_BYTES, Serials, id_of
from llmbridge.model.names import StreamName

LONGEST_TICK_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Transport(Enum):
    """How a connection came here."""

    GRPC = auto()
    SSE = auto()
    WEBSOCKET = auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """The other side of a call. `peer` is its address as the transport tells it."""

    transport: Transport
    peer: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a call is attached to, and for whom.

    A reader has a stream, a member of a group also the group and its own name there; a watcher has no stream.
    """

    stream: StreamName | None
    caller: Caller
    group: str = ""
    consumer: str = ""

    @property
    def shares(self) -> bool:
        """Whether it gets a share of what there is, as members and watchers do, and not all of it, as readers do."""
        return self.stream is None or bool(self.group)


@dataclass(frozen=True, slots=True)
class Totals:
    """How many connections there are; `members` are those of groups and the watchers."""

    connections: int
    members: int
    per_session: Counter[str]


class SharedCall(Protocol):
    """A call that several attached share, and which is no connection itself."""

    def beat(self) -> None:
        """Send a heartbeat if one is due."""

    def drain(self) -> None:
        """End with Draining after what is on its way."""


class Connection:
    """Something attached, as it is at the moment of looking."""

    def __init__(self, serial: int, attendee: Attendee, attachment: Attachment) -> None:
        self.id = id_of(serial)
        self.serial = serial
        """Higher for each connection than for all before it, at any worker of the instance."""
        self.attachment = attachment
        self.gone = asyncio.Event()
        """Set when it is listed no more and holds nothing."""
        self._attendee = attendee
        self._epoch_seconds = time.time() - asyncio.get_running_loop().time()
        self.since_ms = self.last_activity_ms

    @property
    def stream(self) -> StreamName | None:
        """What it reads; None for a watcher."""
        return self.attachment.stream

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._attendee.state

    @property
    def last_activity_ms(self) -> int:
        """When its client last took a message, heartbeats included; in ms since the Unix epoch."""
        return int((self._epoch_seconds + self._attendee.last_taken_at) * 1000)

    @property
    def cursor(self) -> str:
        """The last record handed to it; empty before the first, and for members and watchers."""
        return self._attendee.cursor

    @property
    def lag(self) -> int:
        """How many records come after the cursor, as far as this process knows; 0 for members and watchers."""
        return self._attendee.lag

    def end(self, ending: Ending) -> None:
        """Have it end with an error, whatever it waits for: also where its client takes nothing.

        One that is ending already ends as it does.
        """
        self._attendee.end(ending)

    def tick(self, longest_held_seconds: float) -> None:
        """Have it beat if that is due, and end if its client has taken nothing for too long."""
        self._attendee.beat()
        if self._attendee.held_seconds >= longest_held_seconds:
            logger.info(
                "connection %s from %s took nothing for %d s: let go",
                self.id,
                self.attachment.caller.peer,
                longest_held_seconds,
            )
            self.end(ConnectionIdle)

    def drain(self) -> None:
        """Have it end with Draining after the message that it is sending."""
        self._attendee.drain()


class Connections:
    """The registry of one process. `run` must be running.

    An instance may have several workers: `worker` numbers them, `instance_id` is theirs in common. Limits are those of
    the process.
    """

    def __init__(
        self,
        heartbeat_ms: int,
        cleanup_ms: int,
        max_readers: int,
        max_members: int | None,
        *,
        worker: int = 0,
        instance_id: str = "",
    ) -> None:
        self.instance_id = instance_id or secrets.token_hex(ID_BYTES)
        """Tells this instance's connections from those of others."""
        self._tick_seconds = min(heartbeat_ms / 4_000, LONGEST_TICK_SECONDS)
        self._longest_held_seconds = cleanup_ms / 1000
        self._max_readers = max_readers
        self._max_members = max_members
        self._connections: dict[str, Connection] = {}
        self._shared_calls: dict[SharedCall, None] = {}
        self._serials = Serials(worker)
        self._members = 0
        self._draining = False

    def __len__(self) -> int:
        """How many calls are attached or attaching."""
        return len(self._connections)

    def __contains__(self, connection_id: str) -> bool:
        """Whether a call of this id is attached or attaching."""
        return connection_id in self._connections

    @asynccontextmanager
    async def attach(self, attached: Attached, attachment: Attachment) -> AsyncIterator[None]:
        """Register a call for as long as the context lasts, then have it detached.

        Its task must be the one that runs the context. Raises what `register` does; in the context Disconnected or
        ConnectionIdle, out of whatever is awaited there.
        """
        connection = self.register(attached, attachment)
        try:
            async with attached.open():
                yield
        finally:
            self.unregister(connection)

    def register(self, attendee: Attendee, attachment: Attachment) -> Connection:
        """List something as attached, until `unregister`. Raises Draining or LimitExceeded."""
        self._admit(attachment)
        connection = Connection(self._serials.next(), attendee, attachment)
        self._connections[connection.id] = connection
        self._members += attachment.shares
        return connection

    def unregister(self, connection: Connection) -> None:
        """List it no more: it holds nothing."""
        del self._connections[connection.id]
        self._members -= connection.attachment.shares
        connection.gone.set()

    @contextmanager
    def share(self, call: SharedCall) -> Iterator[None]:
        """Have a shared call beat and drain for as long as the context lasts."""
        self._shared_calls[call] = None
        try:
            if self._draining:
                call.drain()
            yield
        finally:
            del self._shared_calls[call]

    async def disconnect(self, connection_id: str) -> None:
        """End a connection with Disconnected and its cursor; when this returns it holds nothing.

        Raises ConnectionNotFound.
        """
        connection = self._connections.get(connection_id)
        if connection is None:
            raise ConnectionNotFound(connection_id)
        logger.info("connection %s from %s: an operator ends it", connection.id, connection.attachment.caller.peer)
        connection.end(lambda: Disconnected(connection.cursor))
        await connection.gone.wait()

    def after(self, serial: int) -> Iterator[Connection]:
        """Give the connections that were attached after the one of this serial, oldest first."""
        return (connection for connection in self._connections.values() if connection.serial > serial)

    def totals(self) -> Totals:
        """Count the connections."""
        streams = (connection.stream for connection in self._connections.values())
        return Totals(
            len(self._connections),
            self._members,
            Counter(stream.session_id for stream in streams if stream is not None),
        )

    def drain(self) -> None:
        """Admit no more calls, and end those that are here with Draining and their cursor."""
        self._draining = True
        # Some end within.
        for connection in tuple(self._connections.values()):
            connection.drain()
        for call in self._shared_calls:
            call.drain()

    async def run(self) -> None:
        """Keep heartbeats, and let go of clients that take nothing, until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds)
            for connection in tuple(self._connections.values()):
                connection.tick(self._longest_held_seconds)
            for call in self._shared_calls:
                call.beat()

    def _admit(self, attachment: Attachment) -> None:
        if self._draining:
            raise Draining
        if attachment.shares:
            limit, maximum, present = "max_consumers_per_instance", self._max_members, self._members
        else:
            limit, maximum, present = "max_readers", self._max_readers, len(self._connections) - self._members
        if maximum is not None and present >= maximum:
            raise LimitExceeded(limit, maximum, present + 1, "subscribe at another instance")
